"""Every objective of the atlas in pytorch-metric-learning's own trainer: the loss falls, all its
parameters learn, and what it says is what the objective says."""

import importlib
import io
from contextlib import redirect_stderr

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import distances, losses, trainers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from nsl_repro.atlas.bench import BenchNet, load_bench, start_at_components
from nsl_repro.atlas.plugins import ObjectiveLoss, SimilarityDistance
from nsl_repro.atlas.registry import systems
from nsl_repro.atlas.structured_bilinear import StructuredBilinear


MOVING = "pair_weighting-mining_only"  # a mean over other pairs at every step: need not fall


def arms():
    "The arms that are trained, of every system of the first family."
    for name, system in systems().items():
        if system.planned.family != "I":
            continue
        module = importlib.import_module(f"nsl_repro.atlas.{name}")
        found = getattr(module, "ARMS", None)
        if found is None and hasattr(module, "_prepared"):
            found = module._prepared("digits", None, True)[1]
        for arm, settings in (found or {}).items():
            if settings.build is not None:
                yield pytest.param(settings, id=f"{name}-{arm}")


@pytest.mark.parametrize("arm", list(arms()))
def test_an_objective_trains_in_the_librarys_trainer(arm, request):
    torch.manual_seed(0)
    part = load_bench("digits", smoke=True).train
    net = BenchNet(part.x.shape[1], 8, arm.hidden, arm.unit)
    start_at_components(net, part.x)
    setting = {key: value for key, value in arm.settings[0].items() if key != "lr"}
    objective = arm.build(dim=8, classes=int(part.y.max()) + 1, **setting)
    loss = ObjectiveLoss(objective).eval()
    torch.manual_seed(1)
    before = loss(net(part.x), part.y)
    torch.manual_seed(1)
    torch.testing.assert_close(before, objective(net(part.x), part.y))
    learned = [p for p in (*net.parameters(), *loss.parameters()) if p.requires_grad]
    trainer = trainers.MetricLossOnly(
        models=dict(trunk=net),
        optimizers=dict(trunk_optimizer=torch.optim.Adam(learned, 3e-3)),
        batch_size=40,
        loss_funcs=dict(metric_loss=loss),
        dataset=torch.utils.data.TensorDataset(*part),
        data_device="cpu",
        dataloader_num_workers=0,
    )
    with redirect_stderr(io.StringIO()):
        trainer.train(num_epochs=8)
    torch.manual_seed(1)
    after = loss.eval()(net.eval()(part.x), part.y)
    assert after < before or (after.isfinite() and MOVING in request.node.name)


def test_a_similarity_searches_and_learns_like_a_distance():
    torch.manual_seed(0)
    similarity = StructuredBilinear(8, 4)
    distance = SimilarityDistance(similarity)
    z, y = torch.randn(20, 8), torch.arange(20) // 4
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    cosine = distances.CosineSimilarity()
    first = [d(z).fill_diagonal_(-9).argmax(1) for d in (distance, cosine)]
    assert torch.equal(*first)  # a similarity that has learned nothing is the cosine
    hits = (y[first[0]] == y).double().mean().item()
    found = calculator.get_accuracy(torch.nn.functional.normalize(z, dim=1), y)
    assert found["precision_at_1"] == pytest.approx(hits)
    loss = losses.NTXentLoss(distance=distance)
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    start = loss(z, y).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(z, y).backward()
        optimizer.step()
    assert loss(z, y).item() < start
    assert (similarity.blocks != torch.eye(4)).any()
