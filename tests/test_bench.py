"""The benchmark in the precision that it takes on a GPU, and what it counts."""

import json

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from nsl_repro.nsl.dynamic import dynamic_conv2d
from nsl_repro.results.ledger import load_ledger

NOTEBOOK = ROOT / "nbs" / "experiments" / "bench_dynamic.ipynb"
RIVALS = ("dns_unfold", "uns_unfold", "dns_deform", "dns_released", "uns_released")


def test_bfloat16(nsl_repro, tmp_path):
    "Every rival takes an image and a weight of bfloat16 beside a similarity of float32."
    typed = ["-p", "preset=smoke", "-p", "precision=bfloat16", "-p", "methods=" + ",".join(RIVALS)]
    done = nsl_repro("run", "bench_dynamic", *typed, "-o", tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path, experiment="bench_dynamic")
    assert {e.method for e in entries} == {"conv", *RIVALS}
    assert {e.parameters["precision"] for e in entries} == {"bfloat16"}


@pytest.fixture(scope="module")
def counters():
    "The cell of the notebook that counts operations and bytes, without its table."
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"]]
    imports = next(s for s in cells if "TorchDispatchMode\n" in s)
    source = next(s for s in cells if "class Bytes" in s)
    lines = [line for line in imports.splitlines() if line.startswith("from torch")]
    names = {}
    exec("\n".join(["import math", "import torch", *lines, source.split("\nrows")[0]]), names)
    return names


@pytest.mark.parametrize("entries", ((9,), (9, 9)), ids=("dns", "uns"))
def test_operations_of_the_dynamic_convolution(counters, entries):
    "Forward: W q, and q = M x. Backward: two products, q again, <gq, x> and M gq."
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    w = torch.randn(7, 3, 3, 3, requires_grad=True)
    M = torch.randn(2, *entries, 4, 5, requires_grad=True)
    places, mixing = 2 * 4 * 5, 3 * torch.Size(entries).numel()
    with FlopCounterMode(display=False, custom_mapping=counters["FORMULAS"]) as counted:
        y = dynamic_conv2d(x, w, M, padding=1, backend="c")
        forward = counted.get_total_flops()
        y.sum().backward()
    assert forward == 2 * places * (7 * 3 * 9 + mixing)
    assert counted.get_total_flops() - forward == 2 * places * (2 * 7 * 3 * 9 + 3 * mixing)


def test_bytes(counters):
    "A sum of two tensors reads two and writes one; a view and an allocation move nothing."
    a = torch.randn(1000)
    with counters["Bytes"]() as memory:
        a + a.flip(0).view(10, 100).flatten()
        torch.empty(10**6)
    assert memory.moved == 4 * 1000 * (2 + 3)
