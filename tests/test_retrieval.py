"""Ties, near ties, precisions and foreign arrays in retrieval, against exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nsl_repro.training import retrieval
from nsl_repro.training.retrieval import (
    auroc,
    evaluate_retrieval,
    map_at_r,
    nearest,
    nmi,
    overlap,
    recall_at_k,
    score_pairs,
)


def exact_order(x, i, score):
    "All others by the exact score of integers, then by index."
    keys, a = [], x[i]
    for j, b in enumerate(x):
        if score == "cosine":  # |a| is the same for all
            dot = sum(p * q for p, q in zip(a, b))
            key = Fraction(dot * abs(dot), sum(q * q for q in b) or 1)
        else:
            key = -sum((p - q) ** 2 for p, q in zip(a, b))
        if j != i:
            keys.append((-key, j))
    return [j for _, j in sorted(keys)]


@pytest.mark.parametrize("score", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [2, 5])
def test_equals_come_in_the_order_of_their_index(score, dtype, dim):
    x = torch.randint(-4, 5, (80, dim), generator=torch.Generator().manual_seed(dim))
    exact = [exact_order(x.tolist(), i, score) for i in range(80)]
    for scale in (1, 2**-60, 2**60):  # a power of two changes no tie
        for k, chunk in ((7, None), (79, 11)):
            found = nearest((x * float(scale)).to(dtype), k=k, score=score, chunk=chunk)[1]
            assert found.tolist() == [order[:k] for order in exact]


def test_near_is_not_equal_in_float64():
    g = torch.Generator().manual_seed(0)
    center = torch.randn(1, 8, generator=g, dtype=torch.float64)
    steps = 1e-9 * torch.randperm(40, generator=g).double()[:, None]
    x = torch.cat([center, center + steps * torch.eye(8, dtype=torch.float64)[:1]])
    values, indices = nearest(x[:1], x[1:], k=40)
    assert torch.equal(indices[0], steps.flatten().argsort())
    torch.testing.assert_close(
        -values[0], steps.flatten().sort().values ** 2, rtol=1e-5, atol=1e-30
    )
    far = torch.tensor([[1.0 + 1e-9], [1.0]], dtype=torch.float64)  # distances that nearly agree
    assert nearest(torch.zeros(1, 1).double(), far, k=2)[1].tolist() == [[1, 0]]


def test_copies_tie_wherever_they_stand():
    x = torch.randn(50, 37, generator=torch.Generator().manual_seed(1)).double()
    for score in ("euclidean", "cosine"):
        found = nearest(x[:9], x.repeat(7, 1), k=7, score=score)
        assert found[1].tolist() == [[i + 50 * n for n in range(7)] for i in range(9)]
        assert (found[0] == found[0][:, :1]).all()


def test_shares_are_divided_in_float64():
    positive = torch.rand(30_011, generator=torch.Generator().manual_seed(0))
    negative = torch.rand(30_013, generator=torch.Generator().manual_seed(1)) - 0.1
    p, n = positive.double().numpy(), np.sort(negative.double().numpy())
    wins = np.searchsorted(n, p, "left").sum() + np.searchsorted(n, p, "right").sum()
    assert abs(auroc(positive, negative) - 50 * wins / (len(p) * len(n))) < 1e-10
    t = np.concatenate([p, n])
    apart = np.searchsorted(n, t, "right") / len(n) - np.searchsorted(np.sort(p), t, "right") / len(
        p
    )
    assert abs(overlap(positive, negative) - 100 * (1 - apart.max())) < 1e-10


class NoFloat64(TorchDispatchMode):
    "A device without float64: the first tensors of it that anything makes are an error."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        assert not any(t.dtype == torch.float64 for t in made), func
        return out


def test_nothing_needs_float64_where_it_is_not(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=g), torch.randint(5, (60,), generator=g)
    expected = [nearest(x, k=9, score=s) for s in ("euclidean", "cosine")]
    monkeypatch.setattr(retrieval, "_NO_FLOAT64", ("cpu", "mps"))
    for (values, indices), score in zip(expected, ("euclidean", "cosine")):
        found = nearest(x, k=9, score=score)  # proposed in float32, settled in float64
        assert torch.equal(found[1], indices) and torch.equal(found[0], values)
    with NoFloat64():
        proposed = retrieval._product_scorer("euclidean", x)(x)
        retrieval._product_scorer("cosine", x)(x)
        retrieval._top(proposed[0], 5)
    assert evaluate_retrieval(x, y, ks=(1, 2))["recall_at_1"] > 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_arrays_of_other_machines_and_backwards(dtype):
    g = np.random.default_rng(0)
    x, y = g.normal(size=(40, 6)).astype(dtype), g.integers(0, 4, 40)
    expected = nearest(x, k=5)
    shapes = (x.astype(f">{dtype}"), x[::-1].copy()[::-1], x[:, ::-1].copy()[:, ::-1])
    for other in shapes:
        found = nearest(other, k=5)
        assert torch.equal(found[1], expected[1]) and torch.equal(found[0], expected[0])
        assert evaluate_retrieval(other, y.astype(">i8")) == evaluate_retrieval(x, y)
        assert nmi(other, y[::-1].copy()[::-1]) == nmi(x, y)
        for one, two in zip(score_pairs(other, y, "cosine", 50), score_pairs(x, y, "cosine", 50)):
            assert torch.equal(one, two)


def test_arrays_of_objects_are_named():
    x, y = np.ones((4, 2), np.float32), np.array([0, 0, 1, 1])
    with pytest.raises(TypeError, match="^queries must be .* of object"):
        nearest(x.astype(object), k=1)
    for function in (evaluate_retrieval, nmi):
        with pytest.raises(TypeError, match="^embeddings must be .* of object"):
            function(x.astype(object), y)
        with pytest.raises(
            TypeError, match="^labels must be what torch can hold, got .* of object"
        ):
            function(x, y.astype(object))
    with pytest.raises(TypeError, match="^labels must be what torch can hold"):
        score_pairs(x, y.astype(object), "cosine")


def test_measures_agree_with_their_parts():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(80, 5, generator=g).double(), torch.randint(6, (80,), generator=g)
    found, lists = evaluate_retrieval(x, y, ks=(1, 4)), nearest(x, k=40)[1]
    assert found["map_at_r"] == map_at_r(lists, y)
    assert found["recall_at_4"] == recall_at_k(lists, y, ks=(4,))[4]
