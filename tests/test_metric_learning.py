"""PDDM in other people's hands: every floating precision, pytorch-metric-learning's own losses,
miners and wrappers, and a version of it that lacks a module."""

import importlib.util
import itertools
import sys

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("pytorch_metric_learning")

import pytorch_metric_learning as library
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import distributed, loss_and_miner_utils

from nsl_repro.pddm.loss import DoubleHeaderHingeLoss
from nsl_repro.pddm.mining import hard_quadruplets
from nsl_repro.pddm.plugins import PDDMDistance, PDDMLoss, QuadrupletMiner, plugin_outcomes
from nsl_repro.pddm.unit import PDDM

PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABELS = torch.arange(12) // 3


def example(normalise_pair=False):
    torch.manual_seed(0)
    return PDDM(6, normalise_pair=normalise_pair), torch.randn(12, 6)


@pytest.mark.parametrize("unit_dtype, dtype", list(itertools.product(PRECISIONS, PRECISIONS)))
def test_embeddings_may_have_another_precision_than_the_unit(unit_dtype, dtype):
    unit, x = example()
    unit, x = unit.to(unit_dtype), x.to(dtype).requires_grad_()
    exact, z = PDDM(6).double(), F.normalize(x.detach().double(), dim=1)
    exact.load_state_dict({name: w.double() for name, w in unit.state_dict().items()})
    half = {unit_dtype, dtype} & {torch.bfloat16, torch.float16}
    close = dict(atol=3e-2 if half else 1e-5, rtol=3e-2 if half else 1e-5, check_dtype=False)
    distance = PDDMDistance(unit)
    S = exact.matrix(z)
    torch.testing.assert_close(distance(x), S, **close)
    torch.testing.assert_close(unit.matrix(F.normalize(x.double(), dim=1)), S, **close)
    assert unit.matrix(x).dtype == unit(x, x).dtype == distance(x).dtype
    found = QuadrupletMiner(2, distance=distance)(x, LABELS)
    loss = PDDMLoss(unit, n=2)
    E = loss(x, LABELS, found)
    torch.testing.assert_close(E, PDDMLoss(exact)(z, LABELS, found), **close)
    torch.testing.assert_close(loss(x, LABELS), E)
    E.backward()
    for t in (x, *unit.parameters()):
        assert t.grad.dtype == t.dtype and t.grad.isfinite().all()
    assert x.grad.any() and unit.W_u.weight.grad.any()


@pytest.mark.parametrize("normalise_pair", [False, True])
def test_two_sets_may_differ_in_precision(normalise_pair):
    unit, x = example(normalise_pair)
    expected = unit.matrix(x, x[:5])
    for one, other in itertools.permutations((torch.float32, torch.float64), 2):
        torch.testing.assert_close(unit.matrix(x.to(one), x[:5].to(other)), expected)


def test_half_precision_is_left_before_anything_is_subtracted():
    unit, x = example()
    x = x.bfloat16()
    z = F.normalize(x.float(), dim=1)
    expected = DoubleHeaderHingeLoss()(unit, z, hard_quadruplets(unit, z, LABELS))
    loss = PDDMLoss(unit, preset="paper")
    torch.testing.assert_close(loss(x, LABELS), expected.loss)
    torch.testing.assert_close(loss.embedding, expected.embedding.detach())


def test_a_miners_triplets_need_no_labels():
    unit, x = example()
    for miner in (QuadrupletMiner(3), miners.BatchHardMiner(), miners.MultiSimilarityMiner()):
        found = miner(x, LABELS)
        assert torch.equal(PDDMLoss(unit)(x, indices_tuple=found), PDDMLoss(unit)(x, LABELS, found))
    with pytest.raises(ValueError, match="labels must be given where indices_tuple is not"):
        PDDMLoss(unit)(x)


def test_a_distance_keeps_its_direction_and_its_sign():
    unit, x = example()
    assert PDDMDistance(unit, is_inverted=True, power=1)(x).shape == (12, 12)
    with pytest.raises(ValueError, match="is_inverted must be True, .* got False."):
        PDDMDistance(unit, is_inverted=False)
    with pytest.raises(ValueError, match="power must be 1, .* got 2."):
        PDDMDistance(unit, power=2)


def two_processes(monkeypatch, other, labels):
    "What the library's wrappers see in one of two processes."
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        distributed, "all_gather", lambda x: labels if x.dtype == labels.dtype else other
    )


def test_gathered_embeddings_are_mined_and_never_averaged_over_all_pairs(monkeypatch):
    unit, x = example()
    other = torch.randn(12, 6)
    two_processes(monkeypatch, other, LABELS)
    gathered = PDDMLoss(unit)(torch.cat([x, other]), LABELS.repeat(2))
    E = distributed.DistributedLossWrapper(PDDMLoss(unit))(x, LABELS)
    torch.testing.assert_close(E, 2 * gathered)
    with pytest.raises(ValueError, match="got all .* hard quadruplets need efficient=False."):
        distributed.DistributedLossWrapper(PDDMLoss(unit), efficient=True)(x, LABELS)
    chosen = distributed.DistributedMinerWrapper(miners.BatchHardMiner(), efficient=True)(x, LABELS)
    wrapper = distributed.DistributedLossWrapper(PDDMLoss(unit), efficient=True)
    assert wrapper(x, LABELS, chosen).isfinite()  # triplets of a miner are chosen
    pairs = loss_and_miner_utils.convert_to_pairs(chosen, LABELS)
    assert wrapper(x, LABELS, pairs).isfinite()


REFUSING = """Angular ArcFace Circle CosFace DynamicSoftMargin FastAP Histogram Instance
LargeMarginSoftmax PNP SignalToNoiseRatioContrastive SmoothAP SphereFace SubCenterArcFace
ThresholdConsistentMargin TupletMargin VICReg"""
TRAINING = """Contrastive IntraPairVariance GeneralizedLiftedStructure LiftedStructure Manifold
Margin MultiSimilarity NPairs NCA NormalizedSoftmax NTXent ProxyAnchor ProxyNCA SoftTriple SupCon
TripletMargin"""


def test_the_page_tells_what_the_library_does_to_a_unit():
    if not library.__version__.startswith("2.9"):
        pytest.skip("another version may have other losses")
    state = torch.get_rng_state()
    found = {taken.name: taken for taken in plugin_outcomes()}
    assert torch.equal(state, torch.get_rng_state())

    def those(kind, outcome):
        return {t.name for t in found.values() if (t.kind, t.outcome) == (kind, outcome)}

    assert those("loss", "refuses") == {f"{name}Loss" for name in REFUSING.split()}
    assert those("loss", "trains") == {f"{name}Loss" for name in TRAINING.split()}
    assert those("loss", "ignores") == {"P2SGradLoss"}
    assert those("loss", "misleads") == {"RankedListLoss"}
    assert those("miner", "refuses") == {"AngularMiner", "DistanceWeightedMiner"}
    assert those("miner", "ignores") == {"EmbeddingsAlreadyPackagedAsTriplets"}
    wrappers = ("CrossBatchMemory of PDDMLoss", "SelfSupervisedLoss of PDDMLoss")
    assert those("wrapper", "refuses") == set(wrappers)
    assert all(t.why for t in found.values() if t.outcome == "refuses")
    assert len([t for t in found.values() if t.kind == "loss"]) == 35


def test_ranked_list_loss_takes_a_score_for_a_distance():
    "Why it misleads: higher scores of two classes cost less. If this fails, it has been mended."
    unit, x = example()
    loss = losses.RankedListLoss(margin=1.0, Tn=1.0, distance=PDDMDistance(unit))
    z = F.normalize(x, dim=1)
    costs = []
    for offset in (0.2, 0.6):
        with torch.no_grad():
            unit.W_s.weight.zero_()
            unit.W_s.bias.fill_(offset)
        costs.append(loss(z, torch.arange(12)).item())  # every pair is of two classes
    assert costs[1] < costs[0]


@pytest.mark.parametrize(
    "missing, told",
    [
        ("", "needs pytorch-metric-learning: pip install"),
        (".utils.loss_and_miner_utils", r"must be 2\.5 or later and below 3 .*, got 2\."),
        (".miners", r"must be 2\.5 or later and below 3 .*, got 2\."),
    ],
)
def test_install_it_is_said_only_when_it_is_missing(monkeypatch, missing, told):
    name = f"pytorch_metric_learning{missing}"
    monkeypatch.setitem(sys.modules, name, None)
    parent, _, child = name.rpartition(".")
    if parent:
        monkeypatch.delattr(sys.modules[parent], child)
    spec = importlib.util.find_spec("nsl_repro.pddm.plugins")
    with pytest.raises(ImportError, match=told) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert ("pip install" in str(caught.value)) == (not missing)
