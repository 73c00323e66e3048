"""One list of tests that every backend of the dynamic convolution passes.

Triton's tests run on a GPU where there is one, and without one in a process of their own under
Triton's interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from nsl_repro.nsl.dynamic import DynamicNSLConv2d, dynamic_conv2d
from nsl_repro.nsl.predictor import SimilarityPredictor
from nsl_repro.kernels import cpu
from nsl_repro.kernels.cpu import choose_backend, why_not, why_reference

KINDS = ("diagonal", "unconstrained")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WITHOUT_A_GPU = "(triton or plans) and not interpreter"
SMALL = (3, 4) if INTERPRETED else (5, 6)  # the interpreter's time grows with the number of places


@pytest.fixture(params=("reference", "c", "triton"))
def backend(request):
    if request.param != "triton" and INTERPRETED:
        pytest.skip("the process for Triton's interpreter")
    if reason := why_not(request.param):
        pytest.skip(reason)
    return request.param


def device(backend):
    return "cuda" if backend == "triton" and not INTERPRETED else "cpu"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def problem(
    kind,
    B=2,
    C=3,
    n_filters=4,
    size=(5, 6),
    kernel=(3, 3),
    dtype=torch.float64,
    device="cpu",
    **geometry,
):
    "Image, weight and similarity that fit together; they require gradients."
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(
        device, dtype
    )
    x, w, K = (
        draw(B, C, *size),
        draw(n_filters, C, *kernel) / (C * kernel[0] * kernel[1]) ** 0.5,
        kernel[0] * kernel[1],
    )
    places = F.conv2d(torch.empty(1, 1, *size), torch.empty(1, 1, *kernel), **geometry).shape[-2:]
    return [
        t.requires_grad_()
        for t in (x, w, draw(B, *((K,) if kind == "diagonal" else (K, K)), *places))
    ]


def naive(x, w, M, **geometry):
    "The definition, with patches made explicit."
    B, C = x.shape[:2]
    K = w[0, 0].numel()
    patches = F.unfold(x, w.shape[2:], **geometry).view(B, C, K, -1)
    matrix = (
        torch.diag_embed(M.flatten(-2).mT) if M.ndim == 4 else M.flatten(-2).permute(0, 3, 1, 2)
    )  # (B, L, K, K)
    return torch.einsum("fck,blkj,bcjl->bfl", w.flatten(2), matrix, patches).unflatten(
        -1, M.shape[-2:]
    )


def value_and_gradients(f, tensors):
    y = f(*tensors)
    return y, *torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum(),
        tensors,
    )


GEOMETRIES = {
    "plain": dict(),
    "padded": dict(padding=1, size=SMALL),
    "stride": dict(padding=1, stride=2),
    "dilation": dict(padding=2, dilation=2, size=SMALL),
    "uneven": dict(kernel=(3, 2), padding=(2, 0), stride=(1, 2), dilation=(2, 1)),
    "pixel": dict(kernel=(1, 1), size=(1, 1)),
    "one_place": dict(size=(3, 3)),
    "odd": dict(size=(7, 3), padding=1),
    "even_kernel": dict(kernel=(2, 2), stride=2),
    "big_kernel": dict(kernel=(5, 5), size=(4, 5), padding=2, B=1),
    "wide": dict(C=33, n_filters=35, size=(3, 3), padding=1, B=1),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_equals_the_definition(backend, kind, name):
    sizes = {
        k: v for k, v in GEOMETRIES[name].items() if k in ("B", "C", "n_filters", "size", "kernel")
    }
    geometry = {k: v for k, v in GEOMETRIES[name].items() if k not in sizes}
    tensors = problem(kind, **sizes, **geometry, device=device(backend))
    ours = value_and_gradients(lambda *t: dynamic_conv2d(*t, **geometry, backend=backend), tensors)
    for a, b in zip(ours, value_and_gradients(lambda *t: naive(*t, **geometry), tensors)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_derivatives(backend, kind):
    tensors = problem(
        kind, B=1, C=2, n_filters=2, size=(3, 2), kernel=(2, 2), padding=1, device=device(backend)
    )
    op = lambda *t: dynamic_conv2d(*t, padding=1, backend=backend)
    assert gradcheck(op, tensors, fast_mode=INTERPRETED) and gradgradcheck(
        op, tensors, fast_mode=INTERPRETED
    )


def test_derivatives_of_derivatives_that_depend_on_each_other(backend, kind):
    "The incoming gradient may itself depend on image, weight and similarity."
    tensors = problem(kind, B=1, C=2, n_filters=2, size=(3, 3), padding=1, device=device(backend))

    def third(f):
        x, w, M = tensors
        first = torch.autograd.grad(f(x, w, M).pow(3).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), w, create_graph=True)[0]
        return second, torch.autograd.grad(second.sum(), M)[0]

    for a, b in zip(
        third(lambda *t: dynamic_conv2d(*t, padding=1, backend=backend)),
        third(lambda *t: naive(*t, padding=1)),
    ):
        torch.testing.assert_close(a, b)


def test_transforms(backend, kind):
    x, w, M = (
        t.detach()
        for t in problem(
            kind, B=1, C=2, n_filters=2, size=(3, 3), padding=1, device=device(backend)
        )
    )
    loss = lambda f: lambda w: f(x, w, M).sin().sum()
    ours = torch.func.grad(loss(lambda *t: dynamic_conv2d(*t, padding=1, backend=backend)))(w)
    torch.testing.assert_close(ours, torch.func.grad(loss(lambda *t: naive(*t, padding=1)))(w))


def test_memory_formats(backend, kind):
    x, w, M = problem(kind, C=4, size=SMALL, padding=1, device=device(backend))
    y = naive(x, w, M, padding=1)
    lasts = M.detach().movedim((-2, -1), (1, 2)).contiguous().movedim((1, 2), (-2, -1))
    every_other = x.detach().repeat_interleave(2, -1)[..., ::2]
    for image in (
        x,
        x.to(memory_format=torch.channels_last),
        every_other,
        x.detach().mT.contiguous().mT,
    ):
        for similarity in (M, lasts, M.detach().repeat_interleave(2, 1)[:, ::2]):
            ours = dynamic_conv2d(image, w, similarity, padding=1, backend=backend)
            torch.testing.assert_close(ours, y)
            assert ours.stride() == F.conv2d(image, w, padding=1).stride()


def test_empty_batch(backend, kind):
    x, w, M = problem(kind, padding=1, device=device(backend))
    y, gx, gw, gM = value_and_gradients(
        lambda *t: dynamic_conv2d(*t, padding=1, backend=backend), [x[:0], w, M[:0]]
    )
    assert (
        y.shape == (0, 4, 5, 6)
        and gx.shape == (0, 3, 5, 6)
        and gM.shape == M[:0].shape
        and not gw.any()
    )


def test_groups_and_bias(backend, kind):
    x, w, M = problem(kind, C=2, n_filters=6, padding=1, device=device(backend))
    x2, bias = torch.cat([x, -x], 1), torch.randn(6, dtype=x.dtype, device=x.device)
    y = dynamic_conv2d(x2, w, M, padding="same", bias=bias, groups=2, backend=backend)
    torch.testing.assert_close(
        y,
        torch.cat([naive(x, w[:3], M, padding=1), naive(-x, w[3:], M, padding=1)], 1)
        + bias[:, None, None],
    )


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(backend, kind, dtype):
    """Under autocast the result has the low precision, sums are at least float32, and the mixing
    keeps the precision of M."""
    where = dict(size=SMALL, device=device(backend))
    tensors = problem(kind, C=16, n_filters=8, padding=1, dtype=torch.float32, **where)
    exact = value_and_gradients(lambda *t: naive(*t, padding=1), tensors)
    with torch.autocast(device(backend), dtype):
        low = value_and_gradients(
            lambda *t: dynamic_conv2d(*t, padding=1, backend=backend), tensors
        )
    assert low[0].dtype == dtype and all(g.dtype == torch.float32 for g in low[1:])
    for a, b in zip(low, exact):
        assert (a - b).abs().max() < 8 * torch.finfo(dtype).eps * b.abs().max()
    x, w, M = (t.detach() for t in tensors)
    one = (
        torch.ones_like(M)
        if kind == "diagonal"
        else torch.eye(9, device=M.device)[:, :, None, None].expand_as(M)
    )
    with torch.autocast(device(backend), dtype):  # bfloat16 has no number between 1 and 1.0078
        gain = [
            dynamic_conv2d(x.abs(), w.abs(), scale * one, padding=1, backend=backend).float().mean()
            for scale in (1.003, 1.0)
        ]
    assert 1.002 < gain[0] / gain[1] < 1.004


def test_one_graph(backend, kind):
    "`torch.compile` finds no graph break, forward and backward."
    if INTERPRETED:
        pytest.skip("the interpreter is not compiled")
    tensors = problem(kind, padding=1, device=device(backend))
    compiled = torch.compile(
        lambda *t: dynamic_conv2d(*t, padding=1, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    for a, b in zip(
        value_and_gradients(compiled, tensors),
        value_and_gradients(lambda *t: naive(*t, padding=1), tensors),
    ):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_same_bits_every_time(backend, kind):
    where = dict(size=SMALL, device=device(backend))
    tensors = problem(kind, B=2, C=17, n_filters=9, padding=1, dtype=torch.float32, **where)
    op = lambda *t: dynamic_conv2d(*t, padding=1, backend=backend)
    for a, b in zip(value_and_gradients(op, tensors), value_and_gradients(op, tensors)):
        assert torch.equal(a, b)


def test_float32_is_accurate(backend, kind):
    tensors = problem(
        kind, B=1, C=40, n_filters=20, padding=1, dtype=torch.float32, device=device(backend)
    )
    exact = value_and_gradients(
        lambda *t: naive(*t, padding=1), [t.detach().double().requires_grad_() for t in tensors]
    )
    allowed = 3e-3 if device(backend) == "cuda" and torch.backends.cudnn.allow_tf32 else 3e-6
    for a, b in zip(
        value_and_gradients(lambda *t: dynamic_conv2d(*t, padding=1, backend=backend), tensors),
        exact,
    ):
        assert (a - b).abs().max() < allowed * b.abs().max()


def test_predictor_and_layer(backend, kind):
    "What the predictor returns, in the layout in which it returns it, through the whole layer."
    torch.manual_seed(0)
    layer = DynamicNSLConv2d(
        4, 6, 3, padding=1, kind=kind, hidden=8, init_scales=(1.0, 0.1), backend=backend
    ).to(device(backend))
    x = torch.randn(3, 4, 6, 6, device=device(backend)).to(memory_format=torch.channels_last)
    assert isinstance(layer.predictor, SimilarityPredictor)
    y = layer(x)
    layer.backend = "reference"
    torch.testing.assert_close(
        y, layer(x), rtol=1e-4, atol=1e-5 if device(backend) == "cpu" else 1e-2
    )


@pytest.mark.parametrize("method", ("dynamic_dns", "dynamic_uns"))
def test_training_is_the_same(backend, method):
    """Fifty steps from one seed: the loss of every step is that of the reference form, to rounding.

    In float64, where rounding stays small: in float32 two runs of this network that differ by
    rounding alone part within ten steps.
    """
    if backend == "reference" or INTERPRETED:
        pytest.skip(
            "nothing to compare" if backend == "reference" else "too slow for the interpreter"
        )
    from nsl_repro.data.images import load_dataset
    from nsl_repro.training.models import cnn9

    images, labels = (
        t[:256] for t in (load_dataset("digits")[0].images, load_dataset("digits")[0].labels)
    )
    images, labels = (images.double() / 127.5 - 1).to(device(backend)), labels.to(device(backend))

    def losses(backend):
        torch.manual_seed(0)
        net = cnn9(method, width=0.125, in_channels=1, image_size=16).to(
            images.device, images.dtype, memory_format=torch.channels_last
        )
        for layer in net.modules():
            if isinstance(layer, DynamicNSLConv2d):
                layer.backend = backend
        optimizer, curve = torch.optim.SGD(net.parameters(), 0.005, momentum=0.9), []
        for step in range(50):
            rows = torch.arange(step * 32, step * 32 + 32) % 256
            loss = F.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        return torch.tensor(curve)

    fast, reference = losses(backend), losses("reference")
    assert reference[-8:].mean() < 0.95 * reference[:8].mean(), "it learns"
    torch.testing.assert_close(fast, reference, rtol=1e-7, atol=0)


class Recorder(TorchDispatchMode):
    "Notes every operator of PyTorch that runs."

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().removeprefix("aten::").split(".")[0])
        return function(*args, **(kwargs or {}))


CAPTURABLE = {"permute", "new_empty", "empty_like", "sum", "prim::device"}


@pytest.fixture
def on_a_planned_gpu(monkeypatch):
    """The operators that the Triton path runs beside its kernels, on a GPU that is not there: a
    value that is read back to the host raises."""
    gpu = pytest.importorskip("nsl_repro.kernels.gpu")
    monkeypatch.setattr(gpu, "_launch", lambda *_, **__: None)
    monkeypatch.setattr(gpu, "_turned", lambda a: a.new_empty(len(a), *a.shape[:0:-1]))
    monkeypatch.setattr(gpu, "_programs", lambda device: 264)

    def run(*tensors):
        geometry = [1, 1], [1, 1, 1, 1], [1, 1]
        with FakeTensorMode():
            x, w, M = (torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in tensors)
            x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
            with Recorder() as seen:
                y = gpu.triton_forward(x, w, M, *geometry)
                gradients = gpu.triton_backward(y, x, w, M, *geometry)
        return (x, w, M), gradients, set(seen.names)

    return run


def test_what_a_graph_captures(on_a_planned_gpu, kind):
    """Beside its kernels the Triton path asks for views, memory and one sum: nothing is read
    back, nothing is copied to the device, and no size depends on a value. In the layout of a
    network nothing is copied at all, and gradients lie as what they belong to."""
    tensors = problem(kind, padding=1, dtype=torch.float32)
    (tensors, gradients, names) = on_a_planned_gpu(*tensors)
    assert "sum" in names and names <= CAPTURABLE, names - CAPTURABLE
    for t, gradient in zip(tensors, gradients):
        assert gradient.stride() == t.stride() and gradient.device.type == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_in_a_cuda_graph(kind, dtype):
    "Captured and replayed on other numbers, value and gradients have the bits of an eager pass."
    where = dict(padding=1, dtype=torch.float32, device="cuda")
    tensors = problem(kind, C=32, n_filters=32, size=(8, 8), **where)

    def both():
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            y = dynamic_conv2d(*tensors, padding=1)  # auto
        return y, *torch.autograd.grad(y.float().square().sum(), tensors)

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        for t in tensors:
            t.mul_(0.5)
    graph.replay()
    for a, b in zip(captured, both()):
        assert torch.equal(a, b)


def test_plans_are_kept(kind):
    "What `torch.compile` is told about Triton's gradients is what they are, in every layout."
    if not INTERPRETED:
        pytest.skip("for the process of Triton's interpreter")
    x, w, M = (t.detach() for t in problem(kind, padding=1, size=SMALL, dtype=torch.float32))
    last = M.movedim((-2, -1), (1, 2)).contiguous().movedim((1, 2), (-2, -1))
    rest = [1, 1], [1, 1, 1, 1], [1, 1], "triton"
    for weight in (w, w.contiguous(memory_format=torch.channels_last)):
        for similarity in (M, last):
            tensors = x, weight, similarity
            y = cpu._conv(*tensors, *rest)
            real = cpu._conv_backward(y, *tensors, *rest)
            plan = cpu._conv_backward(y.to("meta"), *(t.to("meta") for t in tensors), *rest)
            for a, b in zip(real, plan):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_auto_is_the_fastest_that_is_right(monkeypatch):
    "On a GPU that is not there: Triton for what tensor cores multiply, one group, any taps."
    monkeypatch.setattr(cpu, "_reason", lambda backend: "")
    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.empty(2, 8, 5, 5, device="cuda", dtype=dtype)
            assert choose_backend(x, taps=9) == choose_backend(x, taps=25) == "triton"
            assert why_reference(x) == ""
        assert choose_backend(x, groups=2) == "reference"
        assert "one group" in why_reference(x, groups=2)
        assert choose_backend(x.double()) == "reference"
        assert "gain nothing in float64" in why_reference(x.double())
        assert choose_backend(x.cpu()) == "c"
    monkeypatch.setattr(cpu, "_reason", lambda backend: f"no {backend} here.")
    with FakeTensorMode():
        x = torch.empty(2, 8, 5, 5, device="cuda")
        assert (choose_backend(x), why_reference(x)) == ("reference", "no triton here.")
        assert why_reference(x.cpu()) == "no c here."


def test_triton_refuses_the_cpu(monkeypatch, kind):
    "With a GPU beside it, an image on the CPU is refused with a sentence, not by a crash."
    if INTERPRETED:
        pytest.skip("the interpreter works anywhere")
    monkeypatch.setattr(cpu, "_reason", lambda backend: "")
    with pytest.raises(RuntimeError, match="the Triton kernels work on CUDA, and x is on cpu."):
        dynamic_conv2d(*problem(kind, padding=1), padding=1, backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_triton_under_its_interpreter():
    if not why_not("triton"):
        pytest.skip("there is a GPU: the tests above ran on it")
    pytest.importorskip("triton")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_here, "-k", WITHOUT_A_GPU, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and " passed" in done.stdout and "failed" not in done.stdout, (
        done.stdout[-3000:]
    )


@pytest.mark.skipif(INTERPRETED, reason="its own process sets that")
@pytest.mark.parametrize("notebook", ["03_gpu", "04_predictor"])
def test_the_notebooks_of_the_gpu(notebook):
    "In a process of its own, which has not imported Triton yet."
    pytest.importorskip("triton")
    command = [Path(sys.executable).with_name("nbdev_test"), "--path", f"{notebook}.ipynb"]
    folder = Path(__file__).parents[1] / "nbs" / "kernels"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Success" in done.stdout, done.stdout + done.stderr
