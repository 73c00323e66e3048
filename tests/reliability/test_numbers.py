"""Numbers stay finite where the mathematics is, half precision stays within a stated error, and a
training that leaves them says so at once.

The errors of `ERRORS` are shares of the largest value of the float64 result, those of `SCORES` of
1 at least; 1,000 random configurations an operator in CI, 10,000 with NSL_SOAK=1.
"""

import copy
import inspect
import math
import os
import time
import warnings
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import victim
from accelerate.state import AcceleratorState
from torch import nn

from nsl_repro.data import splits as splitting
from nsl_repro.nsl import attention, dynamic, folding, predictor, shape, similarity, sphere, static
from nsl_repro.pddm import loss as losses, mining, plugins, unit as units
from nsl_repro.training import classify, embedding, fewshot, imagenet, models, retrieval
from nsl_repro.training import loop as loops, recipe as recipes
from nsl_repro.data.draws import batch_indices
from nsl_repro.data.images import augment, channel_statistics, to_input

CONFIGURATIONS = 10_000 if os.environ.get("NSL_SOAK") else 1_000


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pick(g, *values):
    return values[int(torch.randint(len(values), (), generator=g))]


def images(g, C, H=5, W=6, B=2):
    return torch.randn(B, C, H, W, generator=g, dtype=torch.float64) * 10 ** float(
        torch.rand((), generator=g) * 2 - 1
    )


def layer(make, C, g):
    net = make().double().eval()
    for p in net.parameters():
        with torch.no_grad():
            p.copy_(
                torch.randn(p.shape, generator=g, dtype=torch.float64)
                / max(1, p[0].numel() if p.dim() > 1 else 1) ** 0.5
            )
    return net, (images(g, C),)


class Call(nn.Module):
    "A function of a network, as a network."

    def __init__(self, net, function):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, *inputs):
        return self.function(self.net, *inputs)


def penalty(net, function, g):
    return layer(lambda: Call(net, function), 1, g)[0], ()


def unit(d, g):
    return units.PDDM(d, normalise_pair=pick(g, False, True))


def on_sphere(g, n, d):
    return F.normalize(vectors(g, n, d), dim=1)


def geometry(g):
    return dict(
        kernel_size=pick(g, 1, 2, 3, (3, 2)),
        stride=pick(g, 1, 2),
        padding=pick(g, 0, 1),
        dilation=pick(g, 1, 2) if pick(g, 0, 1) else 1,
    )


def kernel(g):
    return pick(g, "diagonal", "unconstrained")


def vectors(g, *shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def shared_part(C, g):
    core = predictor.SharedPredictor(4, kind=kernel(g), head=pick(g, "layer", "shared"), hidden=4)
    return Call(nn.ModuleList([core, core.for_layer(C, padding=1)]), lambda parts, x: parts[1](x))


def dynamic_case(g):
    C, kind = pick(g, 1, 3, 8), kernel(g)
    x, w = images(g, C), vectors(g, 4, C, 3, 3) / (9 * C) ** 0.5
    return partial(dynamic.dynamic_conv2d, padding=1, backend=pick(g, "c", "reference")), (
        x,
        w,
        vectors(g, 2, *((9,) if kind == "diagonal" else (9, 9)), 5, 6),
    )


TRIPLETS = (
    torch.tensor([0, 3]),
    torch.tensor([3, 0]),
    torch.tensor([1, 2]),
)  # given: which are the hardest is a choice, not a number

# name -> (a random configuration: a function or a module, and its inputs in float64)
OPERATORS = {
    "bilinear_similarity": lambda g, n=16: (
        similarity.bilinear_similarity,
        (vectors(g, 5, n), vectors(g, 5, n), vectors(g, n, n) / n**0.5),
    ),
    "neural_similarity": lambda g, n=9: (
        similarity.neural_similarity,
        (vectors(g, 5, 3, n), vectors(g, 5, 3, n), vectors(g, n, n) / n**0.5),
    ),
    "block_diagonal": lambda g, n=4: (
        partial(similarity.block_diagonal, channels=3),
        (vectors(g, n, n),),
    ),
    "NeuralSimilarity": lambda g, n=3: (
        layer(lambda: static.NeuralSimilarity(n, kernel(g)), 1, g)[0],
        (vectors(g, 5, 4, n, n),),
    ),
    "similarity_decay": lambda g: penalty(
        static.NeuralSimilarity(3, kernel(g)), static.similarity_decay, g
    ),
    "shape_penalty": lambda g: penalty(
        shape.KernelShape(3, relaxation=pick(g, "straight_through", "hard_concrete")),
        shape.shape_penalty,
        g,
    ),
    "StaticNSLConv2d": lambda g, C=4: layer(
        lambda: static.StaticNSLConv2d(C, 5, kind=kernel(g), groups=pick(g, 1), **geometry(g)), C, g
    ),
    "dynamic_conv2d": dynamic_case,
    "DynamicNSLConv2d": lambda g, C=4: layer(
        lambda: dynamic.DynamicNSLConv2d(
            C, 5, kind=kernel(g), hidden=4, sphere=pick(g, "none", "input", "full"), **geometry(g)
        ),
        C,
        g,
    ),
    "SimilarityPredictor": lambda g, C=4: layer(
        lambda: predictor.SimilarityPredictor(
            C,
            kind=kernel(g),
            hidden=4,
            sphere=pick(g, "none", "input", "full"),
            stride=pick(g, 1, 2),
            padding=1,
        ),
        C,
        g,
    ),
    "SharedPredictor": lambda g, C=4: layer(lambda: shared_part(C, g), C, g),
    "patch_norm": lambda g, C=4: (partial(sphere.patch_norm, **geometry(g)), (images(g, C),)),
    "filter_norm": lambda g: (sphere.filter_norm, (vectors(g, 4, 3, 3, 3),)),
    "angle_response": lambda g: (
        partial(sphere.angle_response, operator=pick(g, "cosine", "linear", "sigmoid")),
        (vectors(g, 50).tanh(),),
    ),
    "SphereConv2d": lambda g, C=4: layer(
        lambda: sphere.SphereConv2d(
            C,
            5,
            operator=pick(g, "none", "cosine", "linear", "sigmoid", "learnable_sigmoid"),
            **geometry(g),
        ),
        C,
        g,
    ),
    "global_similarity": lambda g: (
        attention.global_similarity,
        (vectors(g, 2, 3, 4, 5).tanh(), vectors(g, 2, 3, 4, 5).tanh(), vectors(g, 2, 6, 4, 5)),
    ),
    "GlobalNeuralSimilarity": lambda g, C=8: layer(
        lambda: attention.GlobalNeuralSimilarity(C, pick(g, "cosine", "linear", "sigmoid"), 4), C, g
    ),
    "orthogonality_penalty": lambda g, C=4: penalty(
        sphere.SphereConv2d(C, pick(g, 3, 60), 3), attention.orthogonality_penalty, g
    ),
    "PDDM": lambda g, d=32: (
        layer(lambda: unit(d, g), 1, g)[0],
        (on_sphere(g, 7, d), on_sphere(g, 7, d)),
    ),
    "PDDM.matrix": lambda g, d=32: (
        layer(lambda: Call(unit(d, g), units.PDDM.matrix), 1, g)[0],
        (on_sphere(g, 7, d), on_sphere(g, 5, d))[: pick(g, 1, 2)],
    ),
    "PDDMDistance": lambda g, d=32: (
        layer(lambda: plugins.PDDMDistance(unit(d, g)), 1, g)[0],
        (vectors(g, 7, d), vectors(g, 5, d))[: pick(g, 1, 2)],
    ),
    "PDDMLoss": lambda g, d=32: (
        layer(
            lambda: Call(
                plugins.PDDMLoss(unit(d, g)), lambda loss, z: loss(z, torch.arange(6) % 3, TRIPLETS)
            ),
            1,
            g,
        )[0],
        (vectors(g, 6, d),),
    ),
    "negative_distance": lambda g, d=8: (
        mining.negative_distance,
        (on_sphere(g, 7, d), on_sphere(g, 7, d)),
    ),
    "prototypical_logits": lambda g, d=8: (
        partial(fewshot.prototypical_logits, similarity=pick(g, "euclidean", "cosine")),
        (vectors(g, 7, d), vectors(g, 3, d)),
    ),
    "CosineHead": lambda g, d=8: (fewshot.CosineHead(vectors(g, 3, d)), (vectors(g, 7, d),)),
    "BatchStatistics": lambda g, C=3: layer(lambda: fewshot.BatchStatistics(C), C, g),
    "prototypes": lambda g, d=8: (
        partial(fewshot.prototypes, labels=torch.arange(6) % 3, way=3),
        (vectors(g, 6, d),),
    ),
    "LiftedStructure": lambda g, d=8: (
        partial(embedding.LiftedStructure(), labels=torch.arange(6) % 3),
        (on_sphere(g, 6, d),),
    ),
    "DoubleHeaderHingeLoss": lambda g, d=8: (
        lambda z: (
            losses.DoubleHeaderHingeLoss()(
                mining.negative_distance, z, mining.Quadruplets(*torch.arange(8).view(4, 2))
            ).loss
        ),
        (on_sphere(g, 8, d),),
    ),
    "classification_loss": lambda g, n=5: (
        partial(
            recipes.classification_loss, labels=torch.arange(7) % n, recipe=recipes.RECIPES["clean"]
        ),
        (3 * vectors(g, 7, n),),
    ),
}
ERRORS = {  # bfloat16, float16
    "bilinear_similarity": (0.06, 0.01),
    "neural_similarity": (0.05, 0.005),
    "StaticNSLConv2d": (0.02, 0.0025),
    "dynamic_conv2d": (0.02, 0.002),
    "DynamicNSLConv2d": (0.025, 0.004),
    "patch_norm": (1e-6, 1e-6),
    "filter_norm": (1e-6, 1e-6),
    "angle_response": (2e-6, 2e-6),
    "SphereConv2d": (0.06, 0.006),
    "global_similarity": (0.02, 0.0025),
    "GlobalNeuralSimilarity": (0.015, 0.0025),
    "PDDM": (0.02, 0.003),
    "negative_distance": (1e-6, 1e-6),
    "prototypical_logits": (0.02, 0.0025),
    "BatchStatistics": (1e-6, 1e-6),
    "prototypes": (0.01, 0.001),
    "LiftedStructure": (1e-5, 1e-5),
    "DoubleHeaderHingeLoss": (1e-5, 1e-5),
    "classification_loss": (1e-5, 1e-5),
    "block_diagonal": (1e-6, 1e-6),
    "NeuralSimilarity": (0.015, 0.002),
    "similarity_decay": (1e-6, 1e-6),
    "shape_penalty": (1e-6, 1e-6),
    "SimilarityPredictor": (0.04, 0.02),
    "SharedPredictor": (0.025, 0.003),
    "orthogonality_penalty": (1e-6, 1e-6),
    "PDDM.matrix": (0.02, 0.003),
    "PDDMDistance": (0.02, 0.003),
    "PDDMLoss": (0.025, 0.0035),
    "CosineHead": (0.02, 0.0025),
}

# Of scores, differences count, against margins of 0.5 and 1: hinges cut off nearly all of a sum.
# (With a width of 8 there would sometimes be no unit alive, and rounding would decide it.)
SCORES = {"PDDM", "PDDM.matrix", "PDDMDistance", "DoubleHeaderHingeLoss", "LiftedStructure"}


@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision(name, measured):
    g, worst = torch.Generator().manual_seed(sum(map(ord, name))), [0.0, 0.0]
    for _ in range(CONFIGURATIONS):
        f, inputs = OPERATORS[name](g)
        with torch.no_grad():
            wanted, scale = f(*inputs), None
            if isinstance(f, nn.Module):
                f.float()
            for n, dtype in enumerate((torch.bfloat16, torch.float16)):
                with torch.autocast("cpu", dtype):
                    found = f(*(x.float() for x in inputs))
                scale = (
                    scale or wanted.abs().max().clamp_min(1.0 if name in SCORES else 1e-3).item()
                )
                assert found.shape == wanted.shape and found.isfinite().all(), name
                worst[n] = max(worst[n], (found.double() - wanted).abs().max().item() / scale)
    measured(
        configurations=CONFIGURATIONS,
        bfloat16=worst[0],
        float16=worst[1],
        bound_bfloat16=ERRORS[name][0],
        bound_float16=ERRORS[name][1],
    )
    assert worst[0] <= ERRORS[name][0] and worst[1] <= ERRORS[name][1], (
        f"{name} was wrong by {worst}"
    )


UNMEASURED = {  # what is exported and not in OPERATORS, and why
    **dict.fromkeys(
        ("fold", "shrink", "kernel_shapes"), "takes weights apart, outside of any forward pass"
    ),
    "plugin_outcomes": "a table of words",
    "pddm_settings": "a table of options",
    "score_range": "the least and the largest of the scores that are measured here",
    "KernelShape": "its gates are exactly 0 or 1",
    **dict.fromkeys(("hard_quadruplets", "QuadrupletMiner"), "finds indices"),
    **dict.fromkeys(("image_set", "adapted_names"), "no floating-point tensors"),
    "Conv4": "a network of the layers measured here",
    "Conv9": "a network of the layers measured here",
    "fit_head": "scikit-learn's fit in float64, which autocast does not reach",
    **dict.fromkeys(
        (
            "adaptation",
            "adapt",
            "adapt_then_head",
            "episode_loss",
            "evaluate_episodes",
            "train_episodes",
            "tune",
        ),
        "a loop around the user's network",
    ),
}


def test_no_operator_is_forgotten():
    exported = {
        name: getattr(module, name)
        for module in (
            similarity,
            shape,
            static,
            folding,
            dynamic,
            sphere,
            attention,
            predictor,
            units,
            mining,
            losses,
            plugins,
            fewshot,
        )
        for name in module.__all__
    }
    computing = {
        name
        for name, thing in exported.items()
        if inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, nn.Module))
    }
    assert (
        computing <= OPERATORS.keys() | UNMEASURED.keys()
        and UNMEASURED.keys() <= computing - OPERATORS.keys()
        and ERRORS.keys() == OPERATORS.keys()
    )


one, y = torch.ones(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
z = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
BATCHES = dict(
    zeros=(0 * one, y),
    equal=(one, y),
    empty=(one[:0], y[:0]),
    single=(one[:1], y[:1]),
    one_class=(z, 0 * y),
    every_one_its_class=(z, torch.arange(6)),
    opposite=(torch.cat([z[:3], -z[:3]]), y),
    pairs_equal=(z[[0, 0, 1, 1, 2, 2]], y),
)


def quadruplet_losses():
    "Every way to mine and to weigh quadruplets: name -> how to make the loss."
    found = {}
    for mine, heads, squared in product(
        ("pddm", "distance"), ("both", "metric", "embedding"), (True, False)
    ):
        if mine == "distance" or heads != "embedding":
            name = f"quadruplets_{mine}_{heads}_{'squared' if squared else 'plain'}"
            options = dict(mine_by=mine, heads=heads, n=4, squared=squared)
            found[name] = partial(embedding.QuadrupletObjective, 8, **options)
    return found


LOSSES = {
    **quadruplet_losses(),
    "triplets": lambda: embedding.QuadrupletObjective(8, triplets=True, n=4),
    "lifted_structure": embedding.LiftedStructure,
    "plugin": lambda: plugins.PDDMLoss(units.PDDM(8), n=4),
    "plugin_unsquared": lambda: plugins.PDDMLoss(units.PDDM(8), squared=False, n=4),
    "prototypes": lambda: (
        lambda v, labels: F.cross_entropy(
            fewshot.prototypical_logits(v, fewshot.prototypes(v, labels, int(labels.max()) + 1)),
            labels,
        )
    ),
    "cosine_head": lambda: lambda v, labels: F.cross_entropy(fewshot.CosineHead(z[:6])(v), labels),
    "classification": lambda: (
        lambda v, labels: recipes.classification_loss(v, labels, recipes.RECIPES["clean"])
    ),
}
NEED_AN_IMAGE = ("prototypes", "cosine_head", "classification")  # a mean over nothing


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_finite(name, measured):
    batches = {
        batch: made
        for batch, made in BATCHES.items()
        if batch != "empty" or name not in NEED_AN_IMAGE
    }
    measured(batches=len(batches))
    for batch, (points, labels) in batches.items():
        torch.manual_seed(0)
        loss, points = LOSSES[name](), points.clone().requires_grad_()
        value = loss(points, labels)
        value.backward()
        assert value.isfinite() and points.grad.isfinite().all(), (name, batch)
        if isinstance(loss, nn.Module):
            assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters()), (
                name,
                batch,
            )


def gradient(y, x):
    return torch.autograd.grad(y.sum(), x)[0]


KINDS, PREDICTORS = ("diagonal", "unconstrained"), ("none", "input", "full")
SAME = dict(in_channels=4, out_channels=5, kernel_size=3, padding=1)
ANGLES = ("none", "cosine", "linear", "sigmoid", "learnable_sigmoid")
LAYERS = [
    *(static.StaticNSLConv2d(**SAME, kind=k) for k in KINDS),
    *(
        dynamic.DynamicNSLConv2d(**SAME, kind=k, sphere=s, hidden=4)
        for k in KINDS
        for s in PREDICTORS
    ),
    *(sphere.SphereConv2d(**SAME, operator=o) for o in ANGLES),
    *(attention.GlobalNeuralSimilarity(4, o, 2) for o in ANGLES[1:4]),
    fewshot.BatchStatistics(4),
]


def degenerate_images(net):
    "Zeros, ones, next to nothing, the layer's own filters, no image at all."
    images = torch.ones(2, 4, 5, 5)
    yield from (0 * images, images, 1e-30 * images)
    if isinstance(net, nn.Conv2d):
        yield net.weight[:1].detach().repeat(2, 1, 1, 1)
    else:
        yield torch.zeros(1, 4, 1, 1)
    statistics = (nn.BatchNorm2d, fewshot.BatchStatistics)  # of nothing there are none
    if not any(isinstance(m, statistics) for m in net.modules()):
        yield images[:0]


@pytest.mark.parametrize("net", LAYERS, ids=str)
def test_gradients_of_operators_are_finite(net):
    for x in degenerate_images(net):
        x = x.clone().requires_grad_()
        net.zero_grad()
        net(x).square().sum().backward()
        assert x.grad.isfinite().all(), x.shape
        for name, p in net.named_parameters():
            assert p.grad is None or p.grad.isfinite().all(), (name, x.shape)


def test_gradients_of_functions_are_finite():
    # angles pi and 0, and what rounding makes of them
    cosines = torch.tensor([-1.5, -1, -1 + 1e-7, 0, 1 - 1e-7, 1, 1.5], requires_grad=True)
    for operator in ("cosine", "linear", "sigmoid"):
        assert gradient(sphere.angle_response(cosines, operator), cosines).isfinite().all()
    for W in (torch.zeros(3, 4), torch.ones(3, 4)):
        W = W.requires_grad_()
        assert gradient(similarity.bilinear_similarity(W, W, torch.eye(4)), W).isfinite().all()
    q = torch.zeros(2, 3, 4, 5, requires_grad=True)
    assert gradient(attention.global_similarity(q, q, q), q).isfinite().all()


def test_retrieval_of_equal_points():
    for points in (0 * one, one):
        for score in ("euclidean", "cosine"):
            values, indices = retrieval.nearest(points, k=3, score=score)
            assert values.isfinite().all() and indices[0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="row 2"):
        retrieval.nearest(torch.where(torch.arange(6)[:, None] == 2, torch.nan, one))


class Spoiled(torch.autograd.Function):
    "The identity, whose gradient is multiplied by a number."

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


SPOILS = {
    "nan": lambda x: x * math.nan,
    "inf": lambda x: x * math.inf,
    "nan gradient": lambda x: Spoiled.apply(x, math.nan),
    "inf gradient": lambda x: Spoiled.apply(x, math.inf),
}
RECIPE, STEPS = replace(recipes.RECIPES["clean"], batch_size=8, lr=0.01), 6


class Stopped(Exception):
    pass


def spoiled_training(spoil, at, on_nonfinite, checkpoint=None, stop=None, started=0):
    """Six steps in three segments; in the steps `at`, from 1, the output or the gradient of
    stages.1.0.0 is spoiled. The network, the result, the weights after each step."""
    torch.manual_seed(0)
    model, seen = models.cnn9("cnn", width=0.1, in_channels=1, image_size=16), []
    model.stages[1][0][0].register_forward_hook(
        lambda m, a, out: (
            SPOILS[spoil](out) if m.training and started + len(seen) + 1 in at else out
        )
    )

    def on_step(done):
        seen.append(copy.deepcopy(model.state_dict()))
        if done == stop:
            raise Stopped

    try:
        result = classify.train(
            model,
            victim.IMAGES,
            None,
            recipe=RECIPE,
            steps=STEPS,
            segments=3,
            flip=False,
            accelerator=loops.make_accelerator("cpu"),
            on_nonfinite=on_nonfinite,
            checkpoint=checkpoint,
            on_step=on_step,
        )
    except (Stopped, loops.NonFinite) as error:
        return model, error, seen
    return model, result, seen


def naive(steps):
    "The weights after these steps, by a loop that knows nothing of the others."
    torch.manual_seed(0)
    model, (mean, std) = (
        models.cnn9("cnn", width=0.1, in_channels=1, image_size=16)
        .to(memory_format=torch.channels_last)
        .train(),
        channel_statistics(victim.IMAGES.images),
    )
    optimizer = recipes.make_optimizer(model, RECIPE)
    for step in steps:
        rows = batch_indices(len(victim.IMAGES), 8, 0, step)
        for group in optimizer.param_groups:
            group["lr"] = recipes.learning_rate(step, STEPS, RECIPE)
        optimizer.zero_grad()
        x = to_input(
            augment(victim.IMAGES.images[rows], 0, step, pad=RECIPE.pad, flip=False),
            RECIPE.input,
            mean,
            std,
        ).contiguous(memory_format=torch.channels_last)
        (
            recipes.classification_loss(model(x), victim.IMAGES.labels[rows], RECIPE)
            + recipes.regulariser(model, RECIPE)
        ).backward()
        optimizer.step()
    return model.state_dict()


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.isfinite().all() and value.equal(b[name]), (
            f"{name} is not what it was before the step"
        )


@pytest.mark.parametrize(
    "spoil, where",
    [
        ("nan", "the output of stages.1.0.0 (Conv2d)"),
        ("inf", "the output of stages.1.0.0 (Conv2d)"),
        ("nan gradient", "the gradient of stages.1.0.0."),
        ("inf gradient", "the gradient of stages.1.0.0."),
    ],
)
@pytest.mark.parametrize("at", [1, 4, STEPS])
def test_training_stops_at_the_step_with_layer_and_images(spoil, where, at):
    model, error, _ = spoiled_training(spoil, [at], "raise")
    rows = batch_indices(len(victim.IMAGES), 8, 0, at - 1).tolist()
    assert (
        isinstance(error, loops.NonFinite)
        and error.step == at
        and error.rows == rows
        and error.where.startswith(where)
    ), error
    assert (
        str(error).startswith(f"step {at}: {where}")
        and f"(images {', '.join(map(str, rows[:3]))}, ... of 8)." in str(error)
        and "on_nonfinite='skip'" in str(error)
    )
    same(model.state_dict(), naive(range(at - 1)))


def test_record_keeps_what_was_measured():
    with pytest.warns(
        UserWarning, match=r"step 4: the gradient of stages.1.0.0.(bias|weight) is not finite"
    ):
        model, result, seen = spoiled_training("inf gradient", [4, 5], "record")
    assert (
        result.metrics["diverged_step"] == 4 == len(seen)
        and result.curves["step"] == [2]
        and result.metrics["train_loss"] == result.curves["train_loss"][0]
    )
    same(model.state_dict(), naive(range(3)))


def test_skip_leaves_out_and_counts(tmp_path):
    at, kept = [2, 4, 6], [0, 2, 4]
    model, result, _ = spoiled_training("nan", at, "skip")
    assert (
        result.metrics["skipped_steps"] == 3
        and result.curves["step"] == [2, 4, 6]
        and all(map(math.isfinite, result.curves["train_loss"]))
    )
    same(model.state_dict(), naive(kept))
    assert isinstance(spoiled_training("nan", at, "skip", tmp_path / "c.pt", stop=5)[1], Stopped)
    again, resumed, _ = spoiled_training("nan", at, "skip", tmp_path / "c.pt", started=4)
    assert resumed.metrics["skipped_steps"] == 3 and resumed.curves == result.curves
    same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("loop", victim.LOOPS)
def test_a_healthy_run_is_the_same_with_and_without(loop, tmp_path, monkeypatch):
    found = []
    for name, mode in (("with", "raise"), ("recording", "record"), ("without", "raise")):
        (tmp_path / name).mkdir()
        if name == "without":
            monkeypatch.setattr(loops.FiniteSteps, "allow", lambda *_: True)
        metrics, curves, _ = victim.LOOPS[loop](tmp_path / name, None, on_nonfinite=mode)
        found.append(
            (
                {k: v for k, v in metrics.items() if k not in victim.TIMINGS},
                curves,
                (tmp_path / name / "model.safetensors").read_bytes(),
            )
        )
    assert found[0] == found[1] == found[2]


@pytest.fixture(params=["float32", "bfloat16"])
def precision(request):
    AcceleratorState._reset_state()  # a process has one precision, as a rule
    yield request.param
    AcceleratorState._reset_state()


def train_spoiled(splits, precision, on_nonfinite, at=2):
    "Three steps of two micro-batches; in step `at`, from 1, a layer spoils the first of the two."
    torch.manual_seed(0)
    model, done, passes = imagenet.build_network("cnn10", "static_dns", 10, 0.0625, 16), [], []

    def hook(layer, inputs, out):
        passes.append(1)
        now = layer.training and len(done) == at - 1 and len(passes) % 2 == 1
        return out * math.inf if now else out

    model.stage2[0][0].register_forward_hook(hook)
    model.register_forward_pre_hook(lambda *_: None if model.training else passes.clear())
    recipe = imagenet.ImageNetRecipe(batch_size=16, micro_batch=8, lr=0.05)
    options = dict(recipe=recipe, steps=3, segments=1, on_nonfinite=on_nonfinite)
    result = imagenet.train_network(
        model,
        splits,
        **options,
        accelerator=imagenet.make_engine("cpu", precision),
        on_step=lambda n: (done.append(n), passes.clear()),
    )
    return model, result


def is_finite(model):
    return all(v.isfinite().all() for v in model.state_dict().values())


def test_micro_batches(precision):
    "Only the first of a step's two micro-batches is spoiled, in step 2."
    splits = splitting.load_splits("digits", train_images=60, validation_images=10, test_images=10)
    rows = batch_indices(len(splits.train), 16, 0, 1).tolist()
    with pytest.raises(loops.NonFinite) as said:
        train_spoiled(splits, precision, "raise")
    assert (said.value.step, said.value.rows) == (2, rows)
    assert said.value.where == "the output of stage2.0.0 (StaticNSLConv2d)"
    model, result = train_spoiled(splits, precision, "skip")
    assert result.metrics["skipped_steps"] == 1 and is_finite(model)
    assert model.stage1[0][1].num_batches_tracked == 2
    with pytest.warns(UserWarning, match="step 2: the output of stage2.0.0"):
        model, result = train_spoiled(splits, precision, "record")
    assert result.metrics["diverged_step"] == 2 and is_finite(model)
    assert model.stage1[0][1].num_batches_tracked == 1


def test_float16_is_left_to_its_scaler():
    """Scaled gradients overflow as a matter of course: the scaler leaves the step out and halves
    its factor, down to one."""
    accelerator, net = loops.make_accelerator("cpu"), nn.Linear(2, 1)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = accelerator.prepare(torch.optim.SGD(net.parameters(), lr=0.1))
    guard, before = loops.FiniteSteps(net, "raise", accelerator), net.weight.detach().clone()
    for scale in (4, 2):
        assert accelerator.scaler.get_scale() == scale
        loss = Spoiled.apply(net(torch.ones(3, 2)), math.inf).sum()
        accelerator.backward(loss)
        assert guard.allow(loss, 0, [0, 1, 2], lambda: None)
        optimizer.step()
        optimizer.zero_grad()
        assert net.weight.equal(before)
    loss = Spoiled.apply(net(torch.ones(3, 2)), math.inf).sum()
    accelerator.backward(loss)
    with pytest.raises(loops.NonFinite, match="step 1: the gradient of bias"):
        guard.allow(loss, 0, [0, 1, 2], lambda: None)


@pytest.mark.parametrize("vectorize", [False, True])
def test_layers_are_found_under_vmap(vectorize):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net[1].register_forward_hook(lambda m, a, out: out / 0)
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    episodes = fewshot.EpisodeSampler(points, torch.arange(20) % 2, way=2, shot=1, query=2)
    with pytest.raises(
        loops.NonFinite, match=r"step 1: the output of 1 \(Tanh\) is not finite \(episodes 0, 1\)\."
    ):
        fewshot.train_episodes(
            net, episodes, lambda e: fewshot.episode_loss(net, e, vectorize, steps=1), 2, tasks=2
        )


def test_collapse_is_said_once():
    x, labels = (
        torch.ones(32, 4) + 1e-4 * torch.randn(32, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(32) % 4,
    )
    for inputs, collapsed in ((x, True), (x - 1, False)):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = embedding.train_embedding(
                embedding.EmbeddingNet(4, 8),
                embedding.make_objective("lifted_structure", 8),
                lambda rows, step: 1e4 * inputs[rows] if not collapsed else inputs[rows],
                labels,
                steps=4,
                batch_size=16,
                segments=2,
                accelerator=loops.make_accelerator("cpu"),
            )
        assert [("embeddings have collapsed: after step 2 " in str(w.message)) for w in said] == [
            True
        ] * collapsed
        assert ("collapsed_step" in result.metrics) == collapsed and (
            not collapsed or result.metrics["embedding_spread"] < 0.01
        )


def test_embeddings_stop_record_and_skip():
    x, labels, now = (
        torch.randn(32, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(32) % 4,
        [],
    )

    def spoiled(on_nonfinite):
        net = embedding.EmbeddingNet(4, 8)
        net.linear.register_forward_hook(lambda m, a, out: out * math.nan if now[-1] == 2 else out)
        found = embedding.train_embedding(
            net,
            embedding.make_objective("pddm_quadruplet", 8),
            lambda rows, step: (now.append(step), x[rows])[1],
            labels,
            steps=4,
            batch_size=16,
            segments=2,
            accelerator=loops.make_accelerator("cpu"),
            on_nonfinite=on_nonfinite,
        )
        assert all(p.isfinite().all() for p in net.parameters())
        return found

    with pytest.raises(
        loops.NonFinite,
        match=r"step 3: the output of net.linear \(Linear\) is not finite \(images ",
    ) as said:
        spoiled("raise")
    assert said.value.rows == embedding.class_batches(labels, 16, 4, 0, 2).tolist()
    with pytest.warns(UserWarning, match="step 3: the output of net.linear"):
        result = spoiled("record")
    assert result.metrics["diverged_step"] == 3 and result.curves["step"] == [2]
    result = spoiled("skip")
    assert (
        result.metrics["skipped_steps"] == 1
        and result.curves["step"] == [2, 4]
        and all(map(math.isfinite, result.curves["train_loss"]))
    )


def test_the_look_costs_less_than_a_hundredth(measured):
    "Of a step of the CIFAR network as released, on the CPU."
    net = models.cnn9("dynamic_dns")
    x, labels = (
        torch.randn(16, 3, 32, 32),
        torch.zeros(16).long(),
    )  # a batch of 128 takes eight times as long; the look does not
    guard, spent, whole = loops.FiniteSteps(net), [], []
    for _ in range(3):
        began = time.perf_counter()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        whole.append(8 * (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(5):
            assert guard.allow(loss, 0, [], lambda: None)
        spent.append((time.perf_counter() - began) / 5)
    measured(microseconds=round(1e6 * min(spent)), share=min(spent) / min(whole))
    assert min(spent) < 0.01 * min(whole)
