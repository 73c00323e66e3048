"""The predictor's fused passes give what the predictor gives: under Triton's interpreter, in a
process of its own, where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nsl_repro.kernels.cpu import why_not
from nsl_repro.kernels.predictor import fuses, over_patch_norm, planar_conv2d
from nsl_repro.nsl import predictor as nsl_predictor
from nsl_repro.nsl.predictor import SimilarityPredictor
from nsl_repro.training.models import cnn9, count_macs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(bool(why_not("triton")), reason="there is no GPU")


def fused(predictor, x):
    "A predictor by its fused passes."
    m1, m2 = predictor.m1, predictor.m2
    d = nn.functional.conv2d(x, m1.weight, None, m1.stride, m1.padding, m1.dilation)
    h = over_patch_norm(d, x, m1.kernel_size, m1.stride, m1.padding, m1.dilation, m1.eps)
    R = planar_conv2d(predictor.bn1(h).relu_(), m2.weight, m2.stride, m2.padding)
    R = predictor.bn2(R)
    if predictor.kind == "diagonal":
        return R + 1
    K = predictor.K
    return R.unflatten(1, (K, K)) + torch.eye(K, device=R.device)[:, :, None, None]


def network(kind, **geometry):
    torch.manual_seed(0)
    scales = dict(init_scales=(1.0, 0.1))
    predictor = SimilarityPredictor(6, 3, kind, hidden=20, **scales, padding=1, **geometry)
    return predictor.to(DEVICE).to(memory_format=torch.channels_last)


def everything(f, predictor, x):
    "The similarity, and the gradients of the image and of all parameters."
    x = x.clone().requires_grad_()
    M = f(x)
    weights = torch.linspace(-1, 1, M.numel(), device=M.device).view(M.shape)
    return M, *torch.autograd.grad((M * weights).sum(), [x, *predictor.parameters()])


@needs_triton
@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("kind", ("diagonal", "unconstrained"))
def test_the_predictor_is_the_same(kind, stride):
    predictor = network(kind, stride=stride)
    x = torch.randn(2, 6, 6, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    plain = everything(predictor, predictor, x)
    ours = everything(lambda x: fused(predictor, x), predictor, x)
    assert ours[0].is_contiguous()
    tolerance = dict(rtol=1e-4, atol=1e-5) if DEVICE == "cpu" else dict(rtol=1e-2, atol=1e-2)
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, **tolerance)


@needs_triton
def test_the_same_bits_every_time():
    predictor = network("unconstrained")
    x = torch.randn(2, 6, 6, 5, device=DEVICE)
    for a, b in zip(*(everything(lambda x: fused(predictor, x), predictor, x) for _ in range(2))):
        assert torch.equal(a, b)


@pytest.mark.skipif(INTERPRETED, reason="asked about a machine without the interpreter")
def test_a_cpu_keeps_its_path(monkeypatch):
    "Nothing is fused on a CPU, in float64, while compiling or under a transform."
    from nsl_repro.kernels import cpu

    monkeypatch.setattr(cpu, "_reason", lambda backend: "")
    x = torch.randn(2, 3, 5, 5)
    assert not fuses(x)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        gpu = torch.empty(2, 3, 5, 5, device="cuda")
        assert fuses(gpu) and fuses(gpu.bfloat16())
        assert not fuses(gpu.double()) and not fuses(gpu[0])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fuses(gpu)
    seen = []
    torch.func.grad(lambda t: seen.append(fuses(t)) or t.sum())(x)
    assert seen == [False]


def test_a_fused_layer_runs_its_hooks(monkeypatch):
    "So it is counted, and whoever looks at it sees it."

    def planar(h, weight, stride, padding):
        return nn.functional.conv2d(h, weight, None, stride, padding)

    net = cnn9("dynamic_uns", width=0.125)
    counted = count_macs(net, (3, 32, 32))
    monkeypatch.setattr(nsl_predictor, "fuses", lambda h: True)
    monkeypatch.setattr(nsl_predictor, "planar_conv2d", planar)
    assert count_macs(net, (3, 32, 32)) == counted
    seen, layers = [], [m for m in net.modules() if isinstance(m, SimilarityPredictor)]
    for layer in layers:
        layer.m2.register_full_backward_hook(lambda m, before, after: seen.append(m))
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(seen) == len(layers) > 0


@pytest.mark.skipif(INTERPRETED or not why_not("triton"), reason="this is that process")
def test_under_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout[-3000:]
