"""Whatever a public function is given: the right result, or a `ValueError` or `TypeError` that
names the argument. Never a wrong answer, a crash or a hang.

Each function has one good call below. Every argument is spoiled in every way that fits it, and
Hypothesis spoils two or three at once, with NSL_SOAK=1 far more often.
"""

import ast
import copy
import importlib
import inspect
import math
import os
import re
import resource
import signal
import typing
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nsl_repro
from nsl_repro.atlas import (
    adaptive_cosine_margin,
    alignment_data,
    any_loss,
    bench,
    contextual_messages,
    costs,
    copula_similarity,
    decoupled_softmax,
    drape_similarity,
    elastic_margin,
    energy_confusion,
    equiangular_vectors,
    few_shot_separability,
    gaussian_attention,
    error_scoring,
    gaussians,
    harmonic_loss,
    heads,
    label_geometry,
    labels,
    link_graph,
    meta,
    mesh_deformation,
    metric_mixup,
    multiscale_prototypes,
    negative_pairs,
    novel_class_sphere,
    pair_weighting,
    pairs,
    robust_prototypes,
    score_fusion,
    scenes,
    search,
    semantic_proxies,
    small_world_search,
    shortest_path_diffusion,
    sliced,
    sliced_wasserstein,
    snr_distance,
    soft_suppression,
    softmax_ghosts,
    structured_bilinear,
    svm_head,
    threshold_consistency,
    trajectory_metrics,
    two_pass_softmax,
    z_loss,
)
from nsl_repro.base import checks
from nsl_repro.data import draws, features, folder as folders, images as pictures
from nsl_repro.kernels import cpu
from nsl_repro.nsl import attention, convert, dynamic, folding, predictor, shape, similarity
from nsl_repro.nsl import sphere, static, theory
from nsl_repro.pddm import loss as losses, mining, plugins, rerank as reranking, unit as units
from nsl_repro.training import adaptation, embedding, fewshot, imagenet, locality, loop, models
from nsl_repro.training import recipe as recipes, retrieval, sweep as sweeps

SOAK = bool(os.environ.get("NSL_SOAK"))

draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))
pair, K = dict(kernel_size=(3, 3)), 9
x, y, z = draw(2, 4, 6, 5), torch.tensor([0, 0, 1, 1, 2, 2]), F.normalize(draw(6, 8), dim=1)
small = lambda: nn.Sequential(
    nn.Conv2d(3, 4, 3),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.Conv2d(4, 4, 3),
    nn.Flatten(),
    nn.Linear(16, 3),
).eval()
unit = lru_cache(lambda: units.PDDM(8))
slicer = lru_cache(lambda: sliced_wasserstein.AttentionSlicer())
mixture = lambda: gaussians.GaussianMixture(torch.ones(3), draw(3, 4), torch.eye(4).repeat(3, 1, 1))
bytes_ = (draw(6, 1, 16, 16) * 40 + 128).clamp(0, 255).to(torch.uint8)
image_set = lambda: pictures.ImageSet(bytes_, y, ("a", "b", "c"))
backbone = lru_cache(
    lambda: features.Backbone(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "mean colour",
        3,
        (0.5,) * 3,
        (0.2,) * 3,
    )
)
convolved = lambda: features.Backbone(
    nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "one convolution",
    4,
    (0.5,) * 3,
    (0.2,) * 3,
)
sampler = lru_cache(lambda: fewshot.EpisodeSampler(z, y, way=2, shot=1, query=1))
classifier = lru_cache(lambda: nn.Linear(8, 2))
six_lists = torch.tensor([[1, 2], [0, 2], [3, 0], [2, 0], [5, 0], [4, 0]])
quadruplets = mining.Quadruplets(*(torch.tensor([n]) for n in (0, 1, 2, 3)))
recipe = recipes.RECIPES["clean"]
episodes = dict(num_classes=3, kind="static_dns", in_channels=1, norm="batch", bn_momentum=0.1)
dimensions = dict(
    in_channels=4, out_channels=6, kernel_size=3, stride=1, padding=1, dilation=1, groups=1
)

# name -> (what is called, its arguments); a name is `module.function` or `module.Class.method`
GOOD = {
    "bilinear_similarity": (
        similarity.bilinear_similarity,
        dict(W=draw(3, 4), X=draw(3, 4), M=draw(4, 4)),
    ),
    "block_diagonal": (similarity.block_diagonal, dict(M_s=draw(4, 4), channels=3)),
    "neural_similarity": (
        similarity.neural_similarity,
        dict(W=draw(3, 2, 4), X=draw(3, 2, 4), M_s=draw(4), kind="diagonal"),
    ),
    "NeuralSimilarity": (
        static.NeuralSimilarity,
        dict(**pair, kind="diagonal", init="ones", shape=3),
    ),
    "NeuralSimilarity.forward": (
        static.NeuralSimilarity(3, "unconstrained"),
        dict(W=draw(2, 4, 3, 3)),
    ),
    "StaticNSLConv2d": (
        static.StaticNSLConv2d,
        dict(dimensions, bias=True, kind="unconstrained", init="identity", shape=4),
    ),
    "StaticNSLConv2d.forward": (static.StaticNSLConv2d(4, 6, 3), dict(x=x)),
    "KernelShape": (
        shape.KernelShape,
        dict(**pair, budget=3, relaxation="straight_through", price=0.01, speed=1.0)
        | dict(threshold=0.5),
    ),
    "fold": (folding.fold, dict(module=static.StaticNSLConv2d(4, 6, 3))),
    "similarity_decay": (
        static.similarity_decay,
        dict(module=static.StaticNSLConv2d(4, 6, 3), target="zero"),
    ),
    "shape_penalty": (shape.shape_penalty, dict(module=static.StaticNSLConv2d(4, 6, 3))),
    "kernel_shapes": (shape.kernel_shapes, dict(module=static.StaticNSLConv2d(4, 6, 3, shape=3))),
    "shrink": (shape.shrink, dict(module=nn.Conv2d(4, 6, 3))),
    **{
        f"dynamic_conv2d.{backend}.{kind}": (
            dynamic.dynamic_conv2d,
            dict(
                x=x,
                weight=draw(6, 4, 3, 3),
                M=draw(2, *k, 6, 5),
                stride=1,
                padding=1,
                dilation=1,
                bias=draw(6),
                groups=1,
                backend=backend,
            ),
        )
        for backend in ("c", "reference")
        for kind, k in (("dns", (K,)), ("uns", (K, K)))
    },
    "SimilarityPredictor": (
        predictor.SimilarityPredictor,
        dict(
            in_channels=4,
            kernel_size=3,
            kind="diagonal",
            hidden=5,
            sphere="input",
            batchnorm=True,
            init_scales=(0.1, 0.01),
            residual=True,
            stride=1,
            padding=1,
            dilation=1,
            bn_eps=1e-3,
            bn_momentum=0.1,
        ),
    ),
    "SimilarityPredictor.forward": (
        predictor.SimilarityPredictor(4, 3, padding=1).eval(),
        dict(x=x),
    ),
    "DynamicNSLConv2d": (
        dynamic.DynamicNSLConv2d,
        dict(dimensions, bias=True, kind="unconstrained", backend="auto", shape=4, hidden=5),
    ),
    "DynamicNSLConv2d.forward": (dynamic.DynamicNSLConv2d(4, 6, 3, hidden=5).eval(), dict(x=x)),
    "SharedPredictor": (
        predictor.SharedPredictor,
        dict(width=8, kernel_size=3, kind="diagonal", adapt="1x1", head="layer", hidden=5),
    ),
    "SharedPredictor.for_layer": (
        predictor.SharedPredictor(8).for_layer,
        dict(in_channels=4, kernel_size=3, stride=1, padding=1, dilation=1),
    ),
    "patch_norm": (
        sphere.patch_norm,
        dict(x=x, kernel_size=3, stride=1, padding=1, dilation=1, groups=2, eps=1e-4),
    ),
    "filter_norm": (sphere.filter_norm, dict(weight=draw(6, 4, 3, 3), eps=1e-4)),
    "angle_response": (
        sphere.angle_response,
        dict(cos=draw(3, 4).tanh(), operator="sigmoid", k=0.3),
    ),
    "SphereConv2d": (
        sphere.SphereConv2d,
        dict(dimensions, bias=True, operator="linear", normalise="full", eps=1e-4),
    ),
    "SphereConv2d.forward": (sphere.SphereConv2d(4, 6, 3, operator="sigmoid"), dict(x=x)),
    "global_similarity": (
        attention.global_similarity,
        dict(x1=draw(2, 3, 4, 5), x2=draw(2, 3, 4, 5), x3=draw(2, 4, 4, 5)),
    ),
    "GlobalNeuralSimilarity": (
        attention.GlobalNeuralSimilarity,
        dict(channels=8, operator="cosine", reduction=4),
    ),
    "GlobalNeuralSimilarity.forward": (attention.GlobalNeuralSimilarity(4, reduction=2), dict(x=x)),
    "GlobalNeuralSimilarity.attention_map": (
        attention.GlobalNeuralSimilarity(4, reduction=2).attention_map,
        dict(x=x, locations=[(0, 0), (5, 4)]),
    ),
    "orthogonality_penalty": (
        attention.orthogonality_penalty,
        dict(module=sphere.SphereConv2d(4, 6, 3), weight=2e-4),
    ),
    "PDDM": (units.PDDM, dict(dim=8, hidden=(4, 3), normalise_pair=True, last="cosine")),
    "PDDM.forward": (unit(), dict(a=z, b=z.flip(0))),
    "PDDM.matrix": (unit().matrix, dict(a=z, b=z[:4], chunk=7)),
    "negative_distance": (mining.negative_distance, dict(a=z, b=z.flip(0))),
    "hard_quadruplets": (mining.hard_quadruplets, dict(score=unit(), embeddings=z, labels=y, n=2)),
    "score_range": (mining.score_range, dict(score=unit(), embeddings=z, quadruplets=quadruplets)),
    "pddm_settings": (losses.pddm_settings, dict(preset="paper", dim=64)),
    "rerank": (
        reranking.rerank,
        dict(
            score=unit(), queries=z, gallery=z.flip(0), neighbors=torch.ones(6, 2).long(), chunk=5
        ),
    ),
    "DoubleHeaderHingeLoss": (
        losses.DoubleHeaderHingeLoss,
        dict(alpha=0.5, beta=1.0, lam=0.5, squared=True, heads="both", rescale=True)
        | dict(reach="unit"),
    ),
    "DoubleHeaderHingeLoss.forward": (
        losses.DoubleHeaderHingeLoss(),
        dict(score=unit(), embeddings=z, quadruplets=quadruplets),
    ),
    "why_not": (cpu.why_not, dict(backend="c")),
    "choose_backend": (cpu.choose_backend, dict(x=x, groups=1)),
    "why_reference": (cpu.why_reference, dict(x=x, groups=1)),
    **{
        f"fast_dynamic_conv2d.{kind}": (
            cpu.fast_dynamic_conv2d,
            dict(
                x=x,
                weight=draw(6, 4, 3, 3),
                M=draw(2, *k, 6, 5),
                stride=(1, 1),
                padding=(1, 1, 1, 1),
                dilation=(1, 1),
                groups=1,
                backend="c",
            ),
        )
        for kind, k in (("dns", (K,)), ("uns", (K, K)))
    },
    "PDDMDistance": (plugins.PDDMDistance, dict(pddm=unit())),
    "QuadrupletMiner": (plugins.QuadrupletMiner, dict(n=2, distance=plugins.PDDMDistance(unit()))),
    "QuadrupletMiner.forward": (plugins.QuadrupletMiner(2), dict(embeddings=z, labels=y)),
    "PDDMLoss": (
        plugins.PDDMLoss,
        dict(pddm=unit(), alpha=0.5, beta=1.0, lam=0.5, squared=True, heads="both", n=1)
        | dict(rescale=True, reach="unit", preset="paper"),
    ),
    "PDDMLoss.forward": (plugins.PDDMLoss(unit()), dict(embeddings=z, labels=y)),
    "tap_matrix": (theory.tap_matrix, dict(layer=static.StaticNSLConv2d(4, 6, 3))),
    "tap_factors": (theory.tap_factors, dict(layer=static.StaticNSLConv2d(4, 6, 3))),
    "product_velocity": (
        theory.product_velocity,
        dict(W=draw(4, 5), M=draw(4, 4), G=draw(4, 5), kind="unconstrained"),
    ),
    "conserved_quantity": (
        theory.conserved_quantity,
        dict(W=draw(4, 5), M=draw(4), kind="diagonal"),
    ),
    "balanced_velocity": (
        theory.balanced_velocity,
        dict(P=draw(4, 5), G=draw(4, 5), alpha=0.5, kind="unconstrained"),
    ),
    "singular_value_path": (
        theory.singular_value_path,
        dict(times=torch.linspace(0, 3, 4), start=0.1, goal=1.0, alpha=0.1),
    ),
    "effective_rank": (theory.effective_rank, dict(P=draw(4, 5))),
    "check_available": (pictures.check_available, dict(name="digits", root=None, download=False)),
    "ImageSet": (pictures.ImageSet, dict(images=bytes_, labels=y, classes=("a", "b", "c"))),
    "ImageSet.subset": (image_set().subset, dict(indices=torch.tensor([0, 3]))),
    "generator_for": (draws.generator_for, dict(seed=1, stream="order", step=2)),
    "stratified_indices": (draws.stratified_indices, dict(labels=y, n=3, seed=0)),
    "hold_out": (pictures.hold_out, dict(dataset=image_set(), n=2, seed=0)),
    "limit": (pictures.limit, dict(dataset=image_set(), n=2, seed=0)),
    "load_dataset": (pictures.load_dataset, dict(name="digits", root=None, download=False)),
    "batch_indices": (draws.batch_indices, dict(n=100, batch_size=10, seed=0, step=12)),
    "batch_table": (draws.batch_table, dict(n=100, batch_size=10, seed=0, first=12, last=14)),
    "crop_and_flip": (
        pictures.crop_and_flip,
        dict(
            images=bytes_,
            top=torch.zeros(6).long(),
            left=torch.full((6,), 4),
            flip=torch.ones(6).bool(),
            pad=2,
        ),
    ),
    "to_device": (pictures.to_device, dict(tensor=x, device="cpu")),
    "augment": (pictures.augment, dict(images=bytes_, seed=0, step=3, pad=2, flip=True)),
    "crop_table": (
        pictures.crop_table,
        dict(batch_size=6, seed=0, first=2, last=4, pad=2, flip=True),
    ),
    "augment_by": (pictures.augment_by, dict(images=bytes_, row=torch.ones(3, 6).long(), pad=2)),
    "channel_statistics": (pictures.channel_statistics, dict(images=bytes_)),
    "to_input": (
        pictures.to_input,
        dict(images=bytes_, mode="standardised", mean=torch.ones(1), std=torch.ones(1)),
    ),
    "cnn9": (
        models.cnn9,
        dict(
            method="static_dns",
            num_classes=3,
            width=0.05,
            in_channels=1,
            image_size=16,
            static_init="ones",
            bn_momentum=0.1,
            shape=3,
        ),
    ),
    "spherenet9": (
        models.spherenet9,
        dict(
            operator="cosine",
            attention=True,
            num_classes=3,
            width=0.07,
            in_channels=1,
            image_size=8,
            fc_norm=False,
            bn_momentum=0.1,
        ),
    ),
    "count_parameters": (models.count_parameters, dict(model=small())),
    "count_macs": (models.count_macs, dict(model=nn.Conv2d(3, 4, 3), input_size=(3, 8, 8))),
    "collect_similarities": (
        models.collect_similarities,
        dict(model=dynamic.DynamicNSLConv2d(4, 6, 3, hidden=5), x=x),
    ),
    "collect_attention": (
        models.collect_attention,
        dict(model=attention.GlobalNeuralSimilarity(4, reduction=2), x=x, points=[(0.5, 0.5)]),
    ),
    "learning_rate": (recipes.learning_rate, dict(step=3, steps=10, recipe=recipe)),
    "classification_loss": (
        recipes.classification_loss,
        dict(logits=draw(6, 3), labels=y, recipe=recipe),
    ),
    "class_parts": (folders.class_parts, dict(classes=12, shares=(0.5, 0.5), least=(2, 3), seed=1)),
    "recipe_groups": (recipes.recipe_groups, dict(model=small(), recipe=recipe)),
    "parameter_groups": (
        convert.parameter_groups,
        dict(model=small(), weight_decay=0.1, vectors=False),
    ),
    "regulariser": (
        recipes.regulariser,
        dict(model=static.StaticNSLConv2d(4, 6, 3), recipe=recipe),
    ),
    "make_optimizer": (recipes.make_optimizer, dict(model=nn.Linear(2, 2), recipe=recipe)),
    "FiniteSteps": (loop.FiniteSteps, dict(model=small(), on_nonfinite="skip", unit="images")),
    "FiniteSteps.allow": (
        loop.FiniteSteps(small().requires_grad_(False), "skip").allow,
        dict(loss=torch.tensor(1.0), step=3, rows=[1, 2], forward=len),
    ),
    "make_accelerator": (
        loop.make_accelerator,
        dict(device="cpu", precision="float32", tracker="none", tf32=True),
    ),
    "nearest": (
        retrieval.nearest,
        dict(queries=z, gallery=z.flip(0), k=3, score="cosine", rerank=None, chunk=4),
    ),
    "nearest.learned": (
        retrieval.nearest,
        dict(queries=z, gallery=z.flip(0), k=3, score=unit(), rerank=4, chunk=4),
    ),
    "recall_at_k": (
        retrieval.recall_at_k,
        dict(
            indices=torch.tensor([[1], [0], [3], [2], [5], [0]]),
            labels=y,
            gallery_labels=y,
            ks=(1,),
            alone="exclude",
        ),
    ),
    "map_at_r": (
        retrieval.map_at_r,
        dict(indices=torch.tensor([[1, 2]] * 6), labels=y, gallery_labels=y, alone="miss"),
    ),
    "nmi": (retrieval.nmi, dict(embeddings=z, labels=y, seed=0)),
    "evaluate_retrieval": (
        retrieval.evaluate_retrieval,
        dict(
            embeddings=z,
            labels=y,
            ks=(1, 2),
            score="euclidean",
            rerank=None,
            nmi=False,
            prefix="",
            chunk=3,
            alone="exclude",
        ),
    ),
    "class_radius": (locality.class_radius, dict(embeddings=z, labels=y)),
    "nearest_wrong": (locality.nearest_wrong, dict(indices=six_lists, labels=y)),
    "density_errors": (
        locality.density_errors,
        dict(indices=six_lists, labels=y, radius=torch.ones(3)),
    ),
    "class_figures": (locality.class_figures, dict(indices=six_lists, labels=y)),
    "swaps": (locality.swaps, dict(before=six_lists, after=six_lists.flip(1), labels=y)),
    "score_pairs": (
        retrieval.score_pairs,
        dict(embeddings=z, labels=y, score="cosine", n=10, seed=0),
    ),
    "overlap": (retrieval.overlap, dict(positive=draw(5), negative=draw(6))),
    "auroc": (retrieval.auroc, dict(positive=draw(5), negative=draw(6))),
    "Backbone": (
        features.Backbone,
        dict(
            net=nn.Identity(),
            name="nothing",
            dim=4,
            mean=(0.5, 0.5),
            std=(0.2, 0.3),
            weights="none",
        ),
    ),
    "Backbone.forward": (backbone(), dict(images=draw(2, 3, 5, 5))),
    "EpisodeSampler": (
        fewshot.EpisodeSampler,
        dict(images=z, labels=y, way=2, shot=1, query=1, seed=0),
    ),
    "EpisodeSampler.places": (sampler().places, dict(i=3)),
    "EpisodeSampler.batch": (sampler().batch, dict(numbers=[1, 2])),
    "BatchStatistics": (fewshot.BatchStatistics, dict(num_features=4)),
    "BatchStatistics.forward": (fewshot.BatchStatistics(4).requires_grad_(False), dict(x=x)),
    "Conv4": (fewshot.Conv4, dict(episodes, width=4, image_size=16)),
    "Conv4.forward": (
        fewshot.Conv4(3, width=4, in_channels=1, image_size=16).eval().requires_grad_(False),
        dict(x=draw(2, 1, 16, 16)),
    ),
    "Conv9": (fewshot.Conv9, dict(episodes, width=2, image_size=8, fc=4)),
    "Conv9.forward": (
        fewshot.Conv9(3, width=2, in_channels=1, image_size=8, fc=4).eval().requires_grad_(False),
        dict(x=draw(2, 1, 8, 8)),
    ),
    "prototypes": (fewshot.prototypes, dict(features=z, labels=y, way=3)),
    "prototypical_logits": (
        fewshot.prototypical_logits,
        dict(query=z, c=z[:3], similarity="cosine", scale=2.0),
    ),
    "CosineHead": (fewshot.CosineHead, dict(weight=z[:3], scale=10.0)),
    "CosineHead.forward": (fewshot.CosineHead(z[:3]), dict(x=z)),
    "fit_head": (fewshot.fit_head, dict(features=z, labels=y, C=1.0)),
    "adapted_names": (fewshot.adapted_names, dict(model=classifier(), which=["weight"])),
    "class_batches": (
        embedding.class_batches,
        dict(labels=y, batch_size=4, per_class=2, seed=0, step=1),
    ),
    "batch_shape": (embedding.batch_shape, dict(labels=y, batch_size=4, per_class=2, at_most=8)),
    "EmbeddingNet": (embedding.EmbeddingNet, dict(in_dim=8, dim=4)),
    "LastParts": (embedding.LastParts, dict(backbone=small(), last=2)),
    "LastParts.forward": (
        embedding.LastParts(convolved(), 1).requires_grad_(False),
        dict(images=draw(2, 3, 6, 6)),
    ),
    "EmbeddingNet.forward": (embedding.EmbeddingNet(8, 4).requires_grad_(False), dict(x=z)),
    "centre_crops": (embedding.centre_crops, dict(images=bytes_, size=8)),
    "random_crops": (embedding.random_crops, dict(images=bytes_, size=8, seed=0, step=1)),
    "QuadrupletObjective": (
        embedding.QuadrupletObjective,
        dict(
            dim=8,
            mine_by="pddm",
            heads="both",
            triplets=False,
            n=1,
            alpha=0.5,
            beta=1.0,
            lam=0.5,
            squared=True,
            rescale=True,
            reach="unit",
        ),
    ),
    "QuadrupletObjective.forward": (embedding.QuadrupletObjective(8), dict(embeddings=z, labels=y)),
    "LibraryObjective": (embedding.LibraryObjective, dict(loss=nn.Identity(), scale=2.0)),
    "LibraryObjective.forward": (
        embedding.make_objective("triplet", 8),
        dict(embeddings=z, labels=y),
    ),
    "LiftedStructure": (embedding.LiftedStructure, dict(margin=1.0)),
    "LiftedStructure.forward": (embedding.LiftedStructure(), dict(embeddings=z, labels=y)),
    "embedding_spread": (embedding.embedding_spread, dict(embeddings=z)),
    "trials": (embedding.trials, dict(method="triplet", n=2, seed=0)),
    "make_objective": (embedding.make_objective, dict(method="triplet", dim=8, margin=0.2)),
    "to_nsl": (
        convert.to_nsl,
        dict(model=nn.Conv2d(4, 6, 3), kind="static_uns", inplace=False),
    ),  # where may be a function of its user: its notebook shows the refusals
    "similarity_parameters": (
        convert.similarity_parameters,
        dict(model=static.StaticNSLConv2d(4, 6, 3), freeze=False),
    ),
    "Classifier": (
        adaptation.Classifier,
        dict(
            backbone=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
            in_dim=16,
            classes=3,
            adapt="static_dns",
        ),
    ),
    "Classifier.forward": (
        adaptation.Classifier(backbone(), 3, 3, "linear_probe"),
        dict(images=draw(2, 3, 5, 5)),
    ),
    "fit_probe": (adaptation.fit_probe, dict(features=z, labels=y, classes=3, C=0.01)),
    "cnn10": (imagenet.cnn10, dict(num_classes=3, width=0.05, image_size=32, variant="paper")),
    "imagenet_methods": (imagenet.imagenet_methods, dict(network="cnn10", variant="paper")),
    "find_preset": (sweeps.find_preset, dict(preset="smoke", variant="paper")),
    "build_network": (
        imagenet.build_network,
        dict(
            network="cnn10",
            method="static_dns",
            num_classes=3,
            width=0.05,
            image_size=32,
            variant="paper",
        ),
    ),
    "MicroBatches": (
        imagenet.MicroBatches,
        dict(n=100, batch_size=10, micro_batch=5, seed=0, steps=3, start=1),
    ),
    "share_of_step": (imagenet.share_of_step, dict(recipe=imagenet.ImageNetRecipe(), processes=2)),
    "similarity_summary": (
        sweeps.similarity_summary,
        dict(model=static.StaticNSLConv2d(4, 6, 3), x=x),
    ),
    "described": (checks.described, dict(value=3)),
    "StepStatistics": (imagenet.StepStatistics, dict(model=small())),
    "pair_masks": (pairs.pair_masks, dict(labels=y)),
    "cosine_table": (pairs.cosine_table, dict(z=z)),
    "masked_logsumexp": (pairs.masked_logsumexp, dict(x=draw(6, 8), mask=z > 0, one=True)),
    "mean_of_all": (pairs.mean_of_all, dict(losses=draw(6, 8), mask=z > 0)),
    "mean_of_hard": (pairs.mean_of_hard, dict(losses=draw(6, 8), mask=z > 0)),
    "PairObjective.forward": (pairs.PairObjective(pair_weighting.contrastive), dict(z=z, labels=y)),
    "MarginHead": (
        heads.MarginHead,
        dict(dim=8, classes=3, scale=4.0, weight=draw(3, 8), learn_scale=True),
    ),
    "MarginHead.forward": (
        heads.MarginHead(8, 3, margin=heads.additive_margin),
        dict(z=z, labels=y),
    ),
    "additive_margin": (heads.additive_margin, dict(cosine=z, margin=0.1)),
    "angular_margin": (heads.angular_margin, dict(cosine=z, margin=0.1)),
    "euclidean_table": (heads.euclidean_table, dict(a=z, b=draw(3, 8))),
    "DistanceHead": (heads.DistanceHead, dict(dim=8, classes=3, n=2.0, smallest=1e-4)),
    "DistanceHead.forward": (heads.DistanceHead(8, 3), dict(z=z)),
    "HeadObjective.forward": (heads.HeadObjective(heads.MarginHead(8, 3)), dict(z=z, labels=y)),
    "split_bench": (
        bench.split_bench,
        dict(name="toy", x=draw(16, 8), labels=torch.arange(16) // 2, n_train=5),
    ),
    "class_scores": (
        bench.class_scores,
        dict(z=z, y=y, score="cosine", kinds=("retrieval", "verification")),
    ),
    "class_interval": (bench.class_interval, dict(values=draw(5), draws=20, seed=0)),
    "calibration_error": (bench.calibration_error, dict(p=draw(6, 4).softmax(1), y=y, bins=5)),
    "known_class_scores": (
        bench.known_class_scores,
        dict(logits=draw(6, 3), y=y, p=draw(6, 3).softmax(1)),
    ),
    "BenchNet": (bench.BenchNet, dict(in_dim=8, dim=4, hidden=3, unit=False)),
    "BenchNet.forward": (bench.BenchNet(8, 4), dict(x=z)),
    "contradicted": (pair_weighting.contradicted, dict(S=z @ z.T, labels=y, eps=0.1)),
    "multi_similarity": (
        pair_weighting.multi_similarity,
        dict(S=z @ z.T, labels=y, alpha=2.0, beta=40.0, base=0.5, eps=0.1),
    ),
    "contrastive": (pair_weighting.contrastive, dict(S=z @ z.T, labels=y, margin=0.5)),
    "triplet": (pair_weighting.triplet, dict(S=z @ z.T, labels=y, margin=0.1)),
    "binomial_deviance": (
        pair_weighting.binomial_deviance,
        dict(S=z @ z.T, labels=y, alpha=2.0, beta=40.0, base=0.5),
    ),
    "mined_only": (pair_weighting.mined_only, dict(S=z @ z.T, labels=y, eps=0.1)),
    "snr_distance": (snr_distance.snr_distance, dict(x=z, y=draw(3, 8), smallest=1e-6)),
    "squared_euclidean": (snr_distance.squared_euclidean, dict(x=z, y=draw(3, 8))),
    "squared_on_sphere": (snr_distance.squared_on_sphere, dict(x=z, y=draw(3, 8))),
    "zero_mean_penalty": (snr_distance.zero_mean_penalty, dict(z=z)),
    "distance_triplet": (snr_distance.distance_triplet, dict(D=z @ z.T, labels=y, margin=0.2)),
    "distance_contrastive": (
        snr_distance.distance_contrastive,
        dict(D=z @ z.T, labels=y, margin=0.5),
    ),
    "dsml_loss": (snr_distance.dsml_loss, dict(z=z, labels=y, margin=0.2, zero_mean=0.01)),
    "tcm_loss": (
        threshold_consistency.tcm_loss,
        dict(S=z @ z.T, labels=y, high=0.9, low=0.5, pull=1.0, push=0.5),
    ),
    "class_utilities": (
        threshold_consistency.class_utilities,
        dict(D=z @ z.T, labels=y, thresholds=draw(5)),
    ),
    "opis": (threshold_consistency.opis, dict(z=z, labels=y, far=(0.1, 0.5), steps=5)),
    "StructuredBilinear": (
        structured_bilinear.StructuredBilinear,
        dict(dim=8, size=4, order=torch.arange(8).flip(0)),
    ),
    "StructuredBilinear.forward": (
        structured_bilinear.StructuredBilinear(8, 4),
        dict(x=z, y=draw(3, 8)),
    ),
    "BilinearObjective.forward": (
        structured_bilinear.BilinearObjective(structured_bilinear.StructuredBilinear(8)),
        dict(z=z, labels=y),
    ),
    "energy_confusion": (energy_confusion.energy_confusion, dict(z=z, labels=y, blind=True)),
    "ConfusedObjective.forward": (
        energy_confusion.ConfusedObjective(pair_weighting.triplet),
        dict(z=z, labels=y),
    ),
    "DistanceObjective.forward": (
        snr_distance.DistanceObjective(snr_distance.snr_distance),
        dict(z=z, labels=y),
    ),
    "contrastive_form": (metric_mixup.contrastive_form, dict(margin=0.5)),
    "similarity_form": (metric_mixup.similarity_form, dict(beta=2.0, gamma=40.0, base=0.5)),
    "form_loss": (
        metric_mixup.form_loss,
        dict(
            s=z @ z.T, y=(z @ z.T).sigmoid(), mask=z @ z.T > 0, form=metric_mixup.similarity_form()
        ),
    ),
    "mixed_similarity": (
        metric_mixup.mixed_similarity,
        dict(S=z @ z.T, partner=torch.arange(36).view(6, 6) % 6, lam=0.3),
    ),
    "metrix": (
        metric_mixup.metrix,
        dict(
            S=(z @ z.T).tanh(), labels=y, form=metric_mixup.similarity_form(), weight=0.4, lam=0.3
        ),
    ),
    "utilization": (metric_mixup.utilization, dict(queries=z, train=draw(3, 8))),
    "proxy_anchor": (heads.proxy_anchor, dict(s=draw(6, 8), labels=y, alpha=8.0, delta=0.1)),
    "MemoryCell.forward": (semantic_proxies.MemoryCell(8), dict(p=z, h=draw(6, 8))),
    "SemanticProxies": (
        semantic_proxies.SemanticProxies,
        dict(dim=8, classes=3, kind="mean", share=0.5),
    ),
    "minkowski": (harmonic_loss.minkowski, dict(a=z, b=draw(3, 8), p=1.5)),
    "cosine_distance": (harmonic_loss.cosine_distance, dict(a=z, b=draw(3, 8))),
    "canberra": (harmonic_loss.canberra, dict(a=z, b=draw(3, 8), smallest=1e-6)),
    "bray_curtis": (harmonic_loss.bray_curtis, dict(a=z, b=draw(3, 8), smallest=1e-6)),
    "Mahalanobis": (harmonic_loss.Mahalanobis, dict(dim=8)),
    "Mahalanobis.forward": (harmonic_loss.Mahalanobis(8), dict(a=z, b=draw(3, 8))),
    "SlippedHead": (harmonic_loss.SlippedHead, dict(dim=8, classes=3, n=2.0, smallest=1e-4)),
    "SlippedHead.forward": (harmonic_loss.SlippedHead(8, 3), dict(z=z)),
    "squared_hinge": (svm_head.squared_hinge, dict(logits=draw(6, 3), labels=y)),
    "SvmObjective": (svm_head.SvmObjective, dict(dim=8, classes=3, cost=2.0, bias=True)),
    "SvmObjective.forward": (svm_head.SvmObjective(8, 3), dict(z=z, labels=y)),
    "sign_decision": (svm_head.sign_decision, dict(logits=draw(6, 3))),
    "elastic_margins": (
        elastic_margin.elastic_margins,
        dict(own=z[:, 0], mean=0.3, sigma=0.1, order="described"),
    ),
    "ElasticMargin": (
        elastic_margin.ElasticMargin,
        dict(mean=0.3, sigma=0.1, order="described", kind="cosine"),
    ),
    "ElasticMargin.forward": (elastic_margin.ElasticMargin(), dict(own=z[:, :1])),
    "within_whiskers": (negative_pairs.within_whiskers, dict(values=z[:, 0], r=1.0)),
    "negative_pairs": (negative_pairs.negative_pairs, dict(z=z, labels=y, r=1.0)),
    "unified_loss": (
        negative_pairs.unified_loss,
        dict(logits=draw(6, 3), labels=y, negatives=draw(5)),
    ),
    "UnifiedNegatives": (negative_pairs.UnifiedNegatives, dict(head=heads.MarginHead(8, 3), r=1.0)),
    "UnifiedNegatives.forward": (
        negative_pairs.UnifiedNegatives(heads.MarginHead(8, 3)),
        dict(z=z, labels=y),
    ),
    "welch_bound": (equiangular_vectors.welch_bound, dict(n=9, d=4)),
    "coherence": (equiangular_vectors.coherence, dict(vectors=z)),
    "excess": (equiangular_vectors.excess, dict(vectors=z, alpha=0.2)),
    "equiangular_vectors": (
        equiangular_vectors.equiangular_vectors,
        dict(n=6, d=4, alpha=0.6, steps=900, lr=0.01, seed=1),
    ),
    "SemanticProxies.forward": (
        semantic_proxies.SemanticProxies(8, 3).eval(),  # in training it remembers the call
        dict(z=z, labels=y),
    ),
    "scale_and_margin": (
        adaptive_cosine_margin.scale_and_margin,
        dict(cosine=draw(6, 8), labels=y, alpha=0.1, imagined=99.0, least=2.0, nearest=0.01),
    ),
    "MadaCos": (adaptive_cosine_margin.MadaCos, dict(dim=8, classes=3, alpha=0.1)),
    "MadaCos.forward": (adaptive_cosine_margin.MadaCos(8, 3), dict(z=z, labels=y)),
    "z_loss": (z_loss.z_loss, dict(o=draw(6, 4), labels=y, a=0.5, b=1.0)),
    "FactoredSphericalHead": (z_loss.FactoredSphericalHead, dict(weight=draw(4, 8))),
    "FactoredSphericalHead.step": (
        z_loss.FactoredSphericalHead(draw(4, 8)).step,
        dict(h=z, labels=y, lr=0.0),  # a rate of zero leaves the head as it is for the next call
    ),
    "ghost_radius": (softmax_ghosts.ghost_radius, dict(z=draw(4), a=draw(8)[4:])),
    "step_ratio": (softmax_ghosts.step_ratio, dict(slopes=z)),
    "AnyLoss": (any_loss.AnyLoss, dict(score=any_loss.g_mean, L=20.0)),
    "AnyLoss.forward": (any_loss.AnyLoss(L=9.0), dict(p=draw(6, 1).sigmoid(), y=y[:, None] % 2)),
    "AnyLoss.counts": (
        any_loss.AnyLoss(L=9.0).counts,
        dict(p=draw(6, 1).sigmoid(), y=y[:, None] % 2),
    ),
    "ext_exp": (two_pass_softmax.ext_exp, dict(x=z)),
    "softmax_in_passes": (two_pass_softmax.softmax_in_passes, dict(x=z, way="reload")),
    "SphereHead": (
        novel_class_sphere.SphereHead,
        dict(dim=8, classes=3, scale=5.0, weight=draw(3, 8)),
    ),
    "SphereHead.forward": (novel_class_sphere.SphereHead(8, 3), dict(z=z)),
    "add_class": (
        novel_class_sphere.add_class,
        dict(head=novel_class_sphere.SphereHead(8, 3), z=z),
    ),
    "mahalanobis": (gaussians.mahalanobis, dict(delta=z, cov=torch.eye(8) + 0.1)),
    "GaussianMixture": (
        gaussians.GaussianMixture,
        dict(weights=torch.rand(3) + 1, means=draw(3, 4), covs=torch.eye(4).repeat(3, 1, 1)),
    ),
    "GaussianMixture.log_prob": (mixture().log_prob, dict(x=draw(6, 4), sigma=0.5)),
    "GaussianMixture.denoise": (mixture().denoise, dict(x=draw(6, 4), sigma=0.5)),
    "GaussianMixture.sample": (mixture().sample, dict(n=5)),
    "KernelDenoiser": (gaussians.KernelDenoiser, dict(points=z, h=0.5)),
    "KernelDenoiser.denoise": (gaussians.KernelDenoiser(z, 0.5).denoise, dict(x=z, sigma=0.5)),
    "fisher_rao": (gaussians.fisher_rao, dict(A=torch.eye(8) + 0.1, B=2 * torch.eye(8))),
    "fisher_length": (gaussians.fisher_length, dict(path=draw(6, 8).exp())),
    "wasserstein_1d": (
        sliced.wasserstein_1d,
        dict(x=draw(2, 6), y=draw(2, 8), a=torch.rand(6) + 0.1, b=torch.rand(8) + 0.1, p=1.0),
    ),
    "uniform_directions": (sliced.uniform_directions, dict(n=5, d=3)),
    "vmf_directions": (
        sliced.vmf_directions,
        dict(mean=F.normalize(draw(4, 3), dim=1), kappa=2.0, n=5),
    ),
    "directional_costs": (
        sliced.directional_costs,
        dict(
            x=draw(6, 3),
            y=draw(8, 3),
            theta=F.normalize(draw(5, 3), dim=1),
            a=torch.rand(6) + 0.1,
            b=torch.rand(8) + 0.1,
            p=1.0,
        ),
    ),
    "cost_around": (
        sliced_wasserstein.cost_around,
        dict(x=draw(2, 6, 3), y=draw(2, 8, 3), mean=F.normalize(draw(2, 3)), kappa=2.0, n=5),
    ),
    "AttentionSlicer": (sliced_wasserstein.AttentionSlicer, dict(form="sum")),
    "AttentionSlicer.attend": (slicer().attend, dict(x=draw(2, 6, 3))),
    "AttentionSlicer.forward": (slicer(), dict(x=draw(2, 6, 3), y=draw(2, 8, 3))),
    "power_spectrum": (shortest_path_diffusion.power_spectrum, dict(images=draw(6, 2, 5, 4))),
    "kept_share": (shortest_path_diffusion.kept_share, dict(S=draw(8).exp(), tau=torch.rand(5, 8))),
    "sampled_variance": (
        shortest_path_diffusion.sampled_variance,
        dict(S=draw(8).exp(), share=torch.linspace(1, 0, 5)[:, None].repeat(1, 8)),
    ),
    "varifold": (
        mesh_deformation.varifold,
        dict(V=draw(6, 3), faces=torch.tensor([[0, 1, 2], [3, 4, 5]])),
    ),
    "chamfer": (mesh_deformation.chamfer, dict(x=draw(6, 3), y=draw(8, 3))),
    "drape": (
        drape_similarity.drape,
        dict(fabrics=draw(4, 3).exp(), angle=10.0, length=1.2, links=5, lean=2.0),
    ),
    "joint_softmax": (decoupled_softmax.joint_softmax, dict(s=z, y=z > 0)),
    "decoupled_softmax": (decoupled_softmax.decoupled_softmax, dict(s=z, y=z > 0)),
    "soft_topk": (decoupled_softmax.soft_topk, dict(s=z, k=2.0, a=2.0, steps=8)),
    "soft_topk_loss": (decoupled_softmax.soft_topk_loss, dict(s=z, y=z > 0, k=2.0, a=2.0)),
    "additive_pairs": (pairs.additive_pairs, dict(q=z, k=draw(3, 8))),
    "ContextualConv": (
        contextual_messages.ContextualConv,
        dict(in_dim=8, hidden=5, out_dim=3, aggregate="max"),
    ),
    "ContextualConv.forward": (
        contextual_messages.ContextualConv(8, 5, 3),
        dict(h=z, source=y, target=torch.arange(6)),
    ),
    "LocalScales": (score_fusion.LocalScales, dict(dim=8, views=2, hidden=4)),
    "LocalScales.forward": (
        score_fusion.LocalScales(8, 2, 4),
        dict(near=score_fusion.Near(draw(3, 5, 8), draw(3, 5, 8), draw(3, 5, 2))),
    ),
    "consistency_loss": (score_fusion.consistency_loss, dict(l=draw(3, 5), s=draw(3, 5).abs())),
    "growth_exponent": (costs.growth_exponent, dict(sizes=[1, 2, 4], costs=[1.0, 2.0, 5.0])),
    "gaussian_kernel": (gaussian_attention.gaussian_kernel, dict(a=z, b=draw(3, 8))),
    "gaussian_attention": (
        gaussian_attention.gaussian_attention,
        dict(q=z, v=draw(6, 3), landmarks=draw(3, 8), steps=9, ridge=0.01),
    ),
    "newton_inverse": (
        gaussian_attention.newton_inverse,
        dict(A=gaussian_attention.gaussian_kernel(z, z), steps=9, ridge=0.01),
    ),
    "letter_trigrams": (labels.letter_trigrams, dict(texts=("ab", "abc"))),
    "LabelObjective.forward": (
        labels.LabelObjective(
            decoupled_softmax.joint_softmax, draw(4, 5), torch.eye(3, 4) > 0, dim=8
        ),
        dict(z=z, labels=y),
    ),
    "LabelObjective.scores": (
        labels.LabelObjective(
            decoupled_softmax.joint_softmax, draw(4, 5), torch.eye(3, 4) > 0, dim=8
        ).scores,
        dict(z=z),
    ),
    "proto_triplet": (
        few_shot_separability.proto_triplet,
        dict(d=z.square(), labels=y, margin=0.5),
    ),
    "icnn_score": (few_shot_separability.icnn_score, dict(x=z, y=y, k=2, n=3, missing=1.0)),
    "MultiScaleProto": (
        multiscale_prototypes.MultiScaleProto,
        dict(sizes=[3, 5], weights=[1.0, 0.5], learn=True, speed=50.0),
    ),
    "MultiScaleProto.forward": (
        multiscale_prototypes.MultiScaleProto((3, 5)),
        dict(q=z, c=draw(2, 8)),
    ),
    "MultiScaleProto.distances": (
        multiscale_prototypes.MultiScaleProto((3, 5)).distances,
        dict(q=z, c=draw(2, 8)),
    ),
    "RelationMetric": (robust_prototypes.RelationMetric, dict(dim=8, hidden=4)),
    "RelationMetric.forward": (robust_prototypes.RelationMetric(8, 4), dict(z=z, c=draw(2, 8))),
    "noisy_task": (
        bench.noisy_task,
        dict(
            x=draw(16, 3), web=draw(16, 3), y=torch.arange(16) // 4, seed=0, flipped=0.3, other=True
        ),
    ),
    "clean_labels": (robust_prototypes.clean_labels, dict(t=draw(6, 3).softmax(1), y=y, gamma=0.6)),
    "frechet_predict": (
        label_geometry.frechet_predict,
        dict(p=draw(6, 3).softmax(1), d2=draw(5, 3).square()),
    ),
    "tree_distances": (label_geometry.tree_distances, dict(groups=y)),
    "reachable": (label_geometry.reachable, dict(d2=draw(5, 3).square())),
    "correlation": (meta.correlation, dict(scores=z[:, 0], truth=z[:, 1], kind="spearman")),
    "meta_correlation": (
        meta.meta_correlation,
        dict(scores=z, truth=z.flip(0), kind="kendall", draws=2, seed=1),
    ),
    "distortion_ladder": (
        meta.distortion_ladder,
        dict(images=draw(2, 9, 8).sigmoid(), kind="blur", rungs=2, seed=1),
    ),
    "exact_neighbors": (search.exact_neighbors, dict(queries=z, points=z.flip(0), k=2)),
    "diverse_neighbors": (
        search.diverse_neighbors,
        dict(to_query=z[:, 0].abs(), between=torch.cdist(z, z), most=3),
    ),
    "kcenter_coreset": (search.kcenter_coreset, dict(x=z, count=3)),
    "suppressed": (
        search.suppressed,
        dict(overlap=torch.cdist(z, z), score=z[:, 0], threshold=0.3),
    ),
    "found_share": (link_graph.found_share, dict(found=y[:, None], truth=y.flip(0)[:, None])),
    "distances_for_recall": (
        link_graph.distances_for_recall,
        dict(points=draw(60, 3), queries=draw(6, 3), sizes=[20, 60], recall=50.0, M=4),
    ),
    "SmallWorldGraph": (
        small_world_search.SmallWorldGraph,
        dict(dim=8, M=4, ef_construction=9, heuristic=True, floors=True, twins=True, seed=1),
    ),
    "SmallWorldGraph.add": (small_world_search.SmallWorldGraph(8).add, dict(x=z)),
    "SmallWorldGraph.search": (
        small_world_search.SmallWorldGraph(8).add(z).search,
        dict(queries=z, k=2, ef=4),
    ),
    "compose_scenes": (
        scenes.compose_scenes,
        dict(x=draw(3, 8, 8).sigmoid(), n=2, crowded=True, seed=1, noise=0.1),
    ),
    "average_precision": (
        scenes.average_precision,
        dict(
            found=[(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1))],
            truth=torch.tensor([[[0.0, 0, 1, 1]]]),
            threshold=0.4,
        ),
    ),
    "soft_nms": (
        soft_suppression.soft_nms,
        dict(
            boxes=torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]]),
            scores=torch.tensor([0.5, 0.4]),
            method="gaussian",
            sigma=0.4,
            nt=0.2,
            floor=0.01,
        ),
    ),
    "mixture_distance": (
        trajectory_metrics.mixture_distance,
        dict(
            y=draw(3, 2),
            weights=torch.full((3, 2), 0.5),
            means=draw(3, 2, 2),
            covs=torch.eye(2).repeat(3, 2, 1, 1),
        ),
    ),
    "amv": (trajectory_metrics.amv, dict(samples=draw(5, 3, 2))),
    "best_of_n": (
        trajectory_metrics.best_of_n,
        dict(samples=draw(5, 3, 4, 2), truth=draw(3, 4, 2)),
    ),
    "csim_map": (
        copula_similarity.csim_map,
        dict(x=draw(2, 9, 8), y=draw(2, 9, 8).flip(0), patch=4, ties="average"),
    ),
    "csim": (copula_similarity.csim, dict(x=draw(2, 9, 8), y=draw(2, 9, 8).flip(0), patch=4)),
    "ssim_map": (
        copula_similarity.ssim_map,
        dict(x=draw(2, 9, 8).sigmoid(), y=draw(2, 9, 8).flip(0).sigmoid(), window=5),
    ),
    "nearest_by_embedding": (
        alignment_data.nearest_by_embedding,
        dict(vectors=z, corpus=z.flip(0)),
    ),
    "nearest_by_edit": (
        alignment_data.nearest_by_edit,
        dict(texts=["ab", "b"], corpus=["abc", "d"], way="indel"),
    ),
    "recall_beside_control": (
        alignment_data.recall_beside_control,
        dict(scores=z[:, 0], control=z[:, 1], rate=0.2),
    ),
    "write_errors": (
        error_scoring.write_errors,
        dict(errors=[error_scoring.ListedError("a", "b", "c", "Major", 2.0)]),
    ),
    "parse_errors": (error_scoring.parse_errors, dict(answer=error_scoring.write_errors([]))),
    "penalty_score": (
        error_scoring.penalty_score,
        dict(errors=[error_scoring.ListedError("a", "b", "c", "Major", 2.0)]),
    ),
    "answer_after": (error_scoring.answer_after, dict(completion="ab", prompt="a")),
}
CONTAINER = "a container of what others made: no arguments to check"
FILES = (
    "reads or writes files: test_ledger, test_disk, test_data and tests/test_downloads spoil those"
)
COMMAND = "a command of the terminal: tests/test_command and tests/test_runner type nonsense at it"
PICTURE = "draws a picture: its notebook looks at it"
CALLS = (
    "calls functions of its user, whose errors are left as they are; the types of its arguments "
    "are checked, and its notebook shows the refusals"
)
TEXT = (
    "text and numbers for tables, handed over by the library itself: not compared with their "
    "annotations, which would import PyTorch into a command that is in a hurry"
)
LONG = "a training or an evaluation: takes seconds a call; its notebook shows the refusals"
OPERATOR = "called by an operator or a layer, whose own cases go through it"
PART = "takes a part of a container"
NOT_HERE = {
    **dict.fromkeys(("check_counts", "check_geometry", "check_image", "CheckedConv2d"), OPERATOR),
    **dict.fromkeys(("Geometry", "geometry_of", "pad_amounts", "tap_views"), OPERATOR),
    **dict.fromkeys(("laid_out_as_conv2d", "as_one_call"), OPERATOR),
    **dict.fromkeys(("reference_dynamic_conv2d", "run_backend"), OPERATOR),
    **dict.fromkeys(("some_images", "only_classes"), PART),
    **dict.fromkeys(("History", "Continued", "Watched", "Segmented"), LONG),
    **dict.fromkeys(("Sweep", "train_one", "run_one", "keep_network"), LONG),
    **dict.fromkeys(("carry_out_plan", "deadline", "Hour"), LONG),
    **dict.fromkeys(("Plan", "PlannedRun", "Round"), CONTAINER),
    **dict.fromkeys(("read_plan", "rehearsal", "seconds_of", "clock"), TEXT),
    **dict.fromkeys(("expected_seconds", "is_finished"), TEXT),
    **dict.fromkeys(("Pairs", "Part", "Bench", "Arm", "Budget", "Choice"), CONTAINER),
    **dict.fromkeys(("FewShot", "NoisyTask"), CONTAINER),
    **dict.fromkeys(("Planned", "Question", "System", "Row", "Consistency"), CONTAINER),
    **dict.fromkeys(("pair_weights", "find_system"), CALLS),
    **dict.fromkeys(("ObjectiveLoss", "SimilarityDistance"), CALLS),
    **dict.fromkeys(("choose", "compare", "study", "run_study", "learn_on_episodes"), LONG),
    **dict.fromkeys(("image_features", "load_bench", "bench_features"), FILES),
    **dict.fromkeys(("first_of_each", "start_at_components", "images_apart", "head_scores"), PART),
    **dict.fromkeys(("four_settings", "episode_accuracy", "episodes_of"), PART),
    **dict.fromkeys(("draw_dictionaries", "same_precision", "nearest_prototypes"), PART),
    **dict.fromkeys(("planted_patches", "digit_patches"), PART),
    **dict.fromkeys(("Near", "Cost"), CONTAINER),
    **dict.fromkeys(("times_in_turn", "counted_cost", "take_steps"), CALLS),
    **dict.fromkeys(("bench_labels", "usual_count", "label_precision"), PART),
    **dict.fromkeys(("question_estimate", "judge", "map_rows", "map_table", "arms_table"), TEXT),
    **dict.fromkeys(("standings", "standings_table", "advice", "in_short", "told_elsewhere"), TEXT),
    **dict.fromkeys(("Scene", "Standing"), CONTAINER),
    **dict.fromkeys(("agreement", "digit_similarities", "plot_agreement"), PART),
    "logit_slopes": CALLS,
    **dict.fromkeys(("RadiusClip", "train_with_spike", "onset"), LONG),
    **dict.fromkeys(("Counts", "Task", "Onset"), CONTAINER),
    **dict.fromkeys(("f_score", "g_mean", "balanced_accuracy", "accuracy", "counts_of"), PART),
    "best_threshold": PART,
    "ext_add": PART,
    "compiled": FILES,
    **dict.fromkeys(("ulp_error", "pass_times"), LONG),
    "surest": TEXT,
    **dict.fromkeys(("novel_bench", "class_vectors", "untrained"), PART),
    "sliced_wasserstein": PART,
    **dict.fromkeys(("iem", "iem_embedding", "iem_local_metric"), CALLS),
    **dict.fromkeys(("curve_steps", "digit_steps"), PART),
    **dict.fromkeys(("ascend", "train_slicer"), LONG),
    "clouds_of": PART,
    **dict.fromkeys(("schedule", "nats"), PART),
    **dict.fromkeys(("icosphere", "flow_vertices", "surface_points", "target_of"), PART),
    "fit_flow": LONG,
    **dict.fromkeys(("draw_fabrics", "standardized_logs", "render"), PART),
    "label_names": TEXT,
    **dict.fromkeys(("z_form", "taylor_form", "squared_form", "dense_loss"), PART),
    **dict.fromkeys(("dense_softmax_step", "step_times"), LONG),
    "Form": CONTAINER,
    **dict.fromkeys(("greedy_selection", "search_links"), CALLS),
    **dict.fromkeys(("Neighbors", "LinkGraph"), CONTAINER),
    **dict.fromkeys(("Mixture", "ListedError"), CONTAINER),
    "ErrorTagger": LONG,
    **dict.fromkeys(("weather_sentence", "weather_sentences", "planted_penalty"), PART),
    "disguised": "a text and one of four words: its notebook shows what comes out",
    "docstrings": "takes no arguments",
    "planted_photos": "cuts of two photographs that come with scikit-learn",
    **dict.fromkeys(("digit_detector", "detections", "fit_mixtures"), LONG),
    **dict.fromkeys(("window_pixels", "planted_walks", "with_speck"), PART),
    "systems": "takes no arguments",
    "plot_map": PICTURE,
    "image_damages": FILES,
    "recording": CALLS,
    "method": "a decorator of the notebook's own functions",
    "Playground": "takes no arguments",
    "Quadruplets": CONTAINER,
    "DoubleHeader": CONTAINER,
    "Taken": CONTAINER,
    **{n: CONTAINER for n in ("Density", "Swaps")},
    "Conversion": CONTAINER,
    "Episode": CONTAINER,
    "EpisodeScores": CONTAINER,
    "Interval": CONTAINER,
    "Table": CONTAINER,
    "Comparison": CONTAINER,
    "Group": CONTAINER,
    "DatasetInfo": CONTAINER,
    "TrainResult": CONTAINER,
    "Features": CONTAINER,
    "Splits": CONTAINER,
    "Preset": CONTAINER,
    "Method": CONTAINER,
    "DataState": CONTAINER,
    "DataSource": CONTAINER,
    **{n: CONTAINER for n in ("Column", "Methods", "MethodStyle", "DataSize", "Answer")},
    **{n: CONTAINER for n in ("Estimate", "Gap", "Verdict", "Judged", "PaperTable")},
    "Headline": CONTAINER,
    "Released": CONTAINER,
    "Beside": CONTAINER,
    "Finding": CONTAINER,
    "Parameter": CONTAINER,
    "Job": CONTAINER,
    "Run": CONTAINER,
    "PhotoSet": CONTAINER + "; its own checks are in data/photos",
    "Recipe": CONTAINER,
    "ImageNetRecipe": CONTAINER + "; its own checks are in training/imagenet",
    **{
        n: "pydantic checks its fields: test_ledger"
        for n in ("Entry", "Claim", "PaperResult", "PaperResults")
    },
    **{
        n: "pydantic checks its fields: tests/test_weights"
        for n in ("Preprocessing", "ModelConfig")
    },
    **{
        n: CALLS
        for n in (
            "adaptation",
            "adapt",
            "adapt_then_head",
            "tune",
            "evaluate_episodes",
            "episode_loss",
            "embed",
            "gradient_flow",
            "minimum_norm_solution",
        )
    },
    **{
        n: TEXT
        for n in (
            "entry_name",
            "threads_of",
            "one_line",
            "notebook_of",
            "metric_words",
            "points",
            "read_headlines",
            "for_every_seed",
            "comparison_of",
            "finite_curves",
            "mean_interval",
            "mean_estimate",
            "difference_interval",
            "difference_estimate",
            "holm",
            "paper_gap",
            "judge_gaps",
            "verdict_rates",
            "corrected",
            "fractional_design",
            "aliases",
            "level_effect",
            "joint_estimate",
            "class_bootstrap",
            "direction",
            "prediction_interval",
            "two_sample_p",
            "method_style",
            "split_variant",
            "variant_words",
            "is_usual",
            "largest_group",
            "split_ledger",
            "rerun_command",
        )
    },
    "new_entry": "pydantic checks its fields: test_ledger",
    **{
        n: TEXT
        for n in ("parse_assignments", "collapse_updates", "find_notebook", "fill", "as_typed")
    },
    "CNN9": "built by cnn9",
    "SphereNet9": "built by spherenet9",
    "Embedder": "built by load",
    **{n: LONG for n in ("train", "evaluate", "tracked")},
    **{n: LONG for n in ("train_episodes",)},
    **{n: LONG for n in ("train_embedding", "train_then_all")},
    **{
        n: LONG
        for n in ("train_network", "evaluate_images", "sweep", "make_engine", "check_launch")
    },
    **{
        n: FILES
        for m, ns in dict(
            training=("save_checkpoint", "load_checkpoint", "newest_checkpoint"),
            downloads=(
                "project_root",
                "data_root",
                "progress_bar",
                "checksum",
                "download",
                "unpack",
                "data_source",
                "find_data",
                "check_files",
                "fetch_data",
                "data_state",
            ),
            photos=(
                "read_image",
                "photos_from_folder",
                "split_classes",
                "hold_out_classes",
                "load_photos",
                "what_is_used",
                "check_photos",
                "photo_faults",
                "photo_notes",
                "look_into",
                "photos_from_parts",
                "PhotoCheck",
                "fingerprint",
                "check_disjoint",
            ),
            folder=("own_name", "check_own", "own_photos", "photos_for"),
            releases=(
                "release_place",
                "released_models",
                "add_to_release",
                "released_folder",
                "model_folder",
            ),
            fewshot=("image_set",),
            embedding=("photo_tensor",),
            imagenet=("load_splits", "Pictures", "decoded"),
            features=("load_backbone", "frozen_features", "class_name_vectors", "wordnet_names"),
            files=("locked", "make_folder", "user_path", "write_whole"),
            results=(
                "read_json",
                "validated",
                "ask_git",
                "packaged",
                "read_methods",
                "group_key",
                "by_method",
                "metric_values",
                "forget_run",
                "repeatable",
                "write_entry",
                "read_entry",
                "load_ledger",
                "load_published",
                "own_names",
                "same_results",
                "publish_run",
                "finished_run",
                "processor_name",
                "published_runs",
                "beside_published",
                "published_report",
                "run_folder",
                "recorded_run",
                "paper_results",
                "entry_names",
                "find_entry",
                "find_entries",
                "against_published",
                "compare_sets",
                "why_unchanged",
                "compare_entries",
                "verdict",
                "comparison_table",
                "metrics_table",
                "claims_table",
                "judged_claims",
                "paper_tables",
                "paper_table",
                "gaps_table",
                "comparisons_told",
            ),
            runner=(
                "experiments_dir",
                "experiments",
                "read_parameters",
                "parse_value",
                "resolve",
                "prepare",
                "execute",
                "run_experiment",
                "publish",
                "summary",
                "recorded_names",
                "save_picture",
            ),
            weights=(
                "keep_model",
                "read_config",
                "load",
                "list_models",
                "to_onnx",
                "model_card",
                "export",
            ),
            pages=(
                "findings",
                "headline_table",
                "headlines_told",
                "beside_the_paper",
                "speed_table",
                "step_table",
                "learned_layers",
                "learned_digest",
                "save_learned",
                "drawn_from",
                "readme_parts",
                "update_readme",
                "part_of_data",
                "surviving",
                "headline_blocks",
                "ledger_scale",
            ),
            answers=(
                "told",
                "nothing_told",
                "worth",
                "costs_told",
                "answer",
                "questions",
                "update_answers",
            ),
            page=("results_page",),
        ).items()
        for n in ns
    },
    **{
        n: PICTURE
        for m, ns in dict(
            retrieval=("plot_neighbours",),
            results=("plot_curves", "plot_accuracy"),
            pages=("plot_findings", "plot_learned"),
            answers=("plot_costs",),
        ).items()
        for n in ns
    },
    **{
        n: COMMAND
        for n in (
            "complete_experiment",
            "complete_parameter",
            "complete_dataset",
            "complete_entry",
            "run_command",
            "list_command",
            "table_command",
            "compare_command",
            "publish_command",
            "paper_command",
            "data_list",
            "data_describe",
            "data_get",
            "data_check",
            "main",
            "export_command",
        )
    },
    "command": COMMAND,
    "launch": COMMAND,
    "checked": "its notebook and every other case here",
    "triton_forward": "called by the operator alone, which checks",
    "triton_backward": "called by the operator alone, which checks",
    "why_not_here": "takes no arguments",
    "plugin_outcomes": "takes no arguments",
    "triton_over_norm": "called by `over_patch_norm` alone",
    "triton_over_norm_backward": "called by `over_patch_norm` alone",
    "triton_planes": "called by `planar_conv2d` alone",
    "triton_planes_backward": "called by `planar_conv2d` alone",
    "fuses": "answers for any tensor",
    "over_patch_norm": "called on a GPU by the layers alone, which check",
    "planar_conv2d": "called on a GPU by the layers alone, which check",
}

GPU = {name for name in NOT_HERE if name.startswith("triton_")} | {"why_not_here"}  # need Triton


def public():
    "The name of everything callable that the library exports."
    for path in sorted(Path(nsl_repro.__file__).parent.glob("*/*.py")):
        names = re.search(r"^__all__ = (\[.*?\])", path.read_text(), re.S | re.M)
        if not names:
            continue
        full = f"nsl_repro.{path.parent.name}.{path.stem}"
        module = None if full == "nsl_repro.kernels.gpu" else importlib.import_module(full)
        for name in ast.literal_eval(names[1]):
            thing = getattr(module, name, None)
            own = thing is None or getattr(thing, "__module__", "") == full
            if (
                own
                and (thing is None or callable(thing))
                and typing.get_origin(thing) is None
                and not (inspect.isclass(thing) and issubclass(thing, BaseException))
            ):
                yield name


def test_nothing_public_is_forgotten(measured):
    there = set(public())
    tried = {name.split(".")[0] for name in GOOD}
    assert there == (tried | NOT_HERE.keys()) & there, (
        f"neither tried nor listed: {sorted(there - tried - NOT_HERE.keys())}"
    )
    assert not tried & NOT_HERE.keys() and not (tried | NOT_HERE.keys()) - there - {
        n for n in NOT_HERE if n in GPU
    }, sorted((tried | NOT_HERE.keys()) - there)
    measured(tried=len(tried), listed=len(NOT_HERE))


# ways to spoil a value: name -> function of the value
ODD = dict(
    none=None,
    text="text",
    empty_text="",
    number=-1,
    zero=0,
    fraction=2.5,
    nan=math.nan,
    infinity=math.inf,
    huge=10**30,
    large=2**40,
    complex=3 + 4j,
    yes=True,
    no=False,
    list=[1, 2],
    empty=[],
    dict={"a": 1},
    thing=object(),
    type=int,
    bytes=b"text",
    function=len,
    array=np.ones(3),
    tensor=torch.ones(2, 3),
    scalar=torch.tensor(1.5),
    strings=["a", "b"],
    pair=(0, -1),
    nested=[[1], [2]],
)
TENSORS = {
    "int64": lambda t: t.long(),
    "uint8": lambda t: t.to(torch.uint8),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "more_dims": lambda t: t[None],
    "fewer_dims": lambda t: t[0],
    "no_dims": lambda t: t.new_zeros(()),
    "no_rows": lambda t: t[:0],
    "no_columns": lambda t: t[..., :0],
    "twice": lambda t: torch.cat([t, t]),
    "twice_columns": lambda t: torch.cat([t, t], -1),
    "longer": lambda t: torch.cat([t, t[:1]]),
    "one_row": lambda t: t[:1],
    "one_column": lambda t: t[..., :1],
    "turned": lambda t: t.transpose(0, -1),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "numpy": lambda t: t.numpy(),
    "as_list": lambda t: t.tolist(),
    "nan": lambda t: t * math.nan if t.is_floating_point() else t,
    "infinite": lambda t: t + math.inf if t.is_floating_point() else t,
    "zeros": lambda t: torch.zeros_like(t),
    "negative": lambda t: t - 10 if t.dtype == torch.int64 else ~t if t.dtype == torch.bool else -t,
    "out_of_range": lambda t: t + 2**62 if t.dtype == torch.int64 else t,
    "largest": lambda t: (
        torch.full_like(t, torch.finfo(t.dtype).max) if t.is_floating_point() else t
    ),
    "huge": lambda t: t.flatten()[:1].view([1] * t.dim()).expand(*t.shape[:-1], 2**50),
    "huge_rows": lambda t: t.flatten()[:1].view([1] * t.dim()).expand(2**50, *t.shape[1:]),
    "huge_middle": lambda t: (
        t.flatten()[:1].view([1] * t.dim()).expand(*t.shape[:1], 2**50, *t.shape[2:])
        if t.dim() > 2
        else t
    ),
}
SAME = {  # the same numbers: the same result
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "requires_grad": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(),
    "channels_last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    ),
    "conjugate_view": lambda t: t.flip(0).flip(0),
    "inference": lambda t: _inference(t),
}


def _inference(t):
    with torch.inference_mode():
        return t.clone()


def spoils(value):
    return [
        *(f"odd {n}" for n in ODD),
        *(
            [*(f"tensor {n}" for n in TENSORS), *(f"same {n}" for n in SAME)]
            if isinstance(value, Tensor) and value.dim()
            else []
        ),
    ]


def spoiled(value, how):
    kind, name = how.split(" ")
    return (
        ODD[name]
        if kind == "odd"
        else TENSORS[name](value)
        if kind == "tensor"
        else SAME[name](value)
    )


SINGLE = [
    (name, argument, how)
    for name, (_, arguments) in GOOD.items()
    for argument, value in arguments.items()
    for how in spoils(value)
    if not (argument == "score" and how in ("odd type", "odd function"))
]  # any function is a score, and what it says about two tensors is its own affair
DOCUMENTED = (ImportError, FileNotFoundError, MemoryError)  # DataNotFound is a FileNotFoundError
FULL = re.compile(
    "allocate|overflow|out of memory|too large|maximum (array|supported)|exceed|inference tensor",
    re.I,
)  # torch's words for what is too large for any machine, and for tensors without gradients


def fresh(name):
    "A call whose object nobody called before: what one call leaves in it must not reach the next."
    function, arguments = GOOD[name]
    return copy.deepcopy(function), arguments


@lru_cache(None)
def good_result(name):
    function, arguments = fresh(name)
    torch.manual_seed(0)
    return function(**arguments)


def _says(text, names):
    return any(
        re.search(
            r"\ba (and|must|=)" if n == "a" else rf"(?<![A-Za-z_]){re.escape(n)}(?![A-Za-z_])", text
        )
        for n in names
    )


def numbers(result):
    return [
        t.detach()
        for t in (result if isinstance(result, (tuple, list)) else [result])
        if isinstance(t, Tensor) and not t.is_meta
    ]


def try_one(name, changes):
    "Call with some arguments spoiled. A sentence about what is wrong, or nothing."
    function, arguments = fresh(name)
    given_ = {**arguments, **{a: spoiled(arguments[a], how) for a, how in changes}}
    torch.manual_seed(0)
    try:
        result = function(**given_)
    except (ValueError, TypeError) as error:
        if not _says(str(error), {*inspect.signature(function).parameters, *arguments}):
            return f"{type(error).__name__} names no argument: {error}"
    except DOCUMENTED as error:
        if not str(error) and not isinstance(error, MemoryError):
            return "an error without a word"
    except RuntimeError as error:
        without_numbers = (
            "tensor meta" in [how for _, how in changes] and "meta" in str(error).lower()
        )  # torch says that there are none
        if not FULL.search(str(error)) and not without_numbers:
            return f"RuntimeError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        if all(how.startswith("same") for _, how in changes):
            for a, b in zip(numbers(good_result(name)), numbers(result)):
                if a.shape != b.shape or not torch.allclose(
                    a.double(), b.double(), rtol=1e-4, atol=1e-5, equal_nan=True
                ):
                    return "the same numbers give another result"
    return None


@pytest.fixture(autouse=True, scope="module")
def little_room():
    """Three gigabytes more than there are now: who asks for more is refused at once, and the
    machine goes on."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Hang(BaseException):
    pass


def _hang(*_):
    raise Hang("more than 20 seconds")


def checked_one(name, changes):
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(20)
    try:
        problem = try_one(name, changes)
    finally:
        signal.alarm(0)
    assert not problem, f"{name}({', '.join(f'{a}: {how}' for a, how in changes)}): {problem}"


def test_good_calls_are_good():
    for name in GOOD:
        good_result(name)


def test_every_argument_spoiled_in_every_way(measured):
    for name, argument, how in SINGLE:
        checked_one(name, [(argument, how)])
    measured(functions=len(GOOD), cases=len(SINGLE))


BY_FUNCTION = {name: [(argument, how) for n, argument, how in SINGLE if n == name] for name in GOOD}
PAIRS = 100_000 if SOAK else 2_000


def test_two_or_three_arguments_spoiled_at_once(measured):
    @given(
        st.sampled_from([name for name in GOOD if len(GOOD[name][1]) > 1]).flatmap(
            lambda name: st.tuples(
                st.just(name),
                st.lists(
                    st.sampled_from(BY_FUNCTION[name]),
                    min_size=2,
                    max_size=3,
                    unique_by=lambda c: c[0],
                ),
            )
        )
    )
    @settings(
        max_examples=PAIRS,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def spoiled_at_once(chosen):
        checked_one(*chosen)

    spoiled_at_once()
    measured(examples=PAIRS)
