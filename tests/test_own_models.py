"""Models of one's own, as a user would: timm's, its optimizer, folding, files, ONNX, releases."""

import os
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from conftest import ROOT
from timm.optim import create_optimizer_v2
from torch import nn

from nsl_repro import fold, list_models, load, parameter_groups, similarity_parameters, to_nsl
from nsl_repro import to_onnx
from nsl_repro.nsl.static import NeuralSimilarity
from nsl_repro.training.models import cnn9
from nsl_repro.training.weights import TOLERANCE, Preprocessing, keep_model


def small(**options):
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=4, **options).eval()


def distance(model):
    "How far the static similarities are from the identity."
    found = []
    for m in model.modules():
        if isinstance(m, NeuralSimilarity):
            M = m.M_s.detach()
            found.append((M - (1 if M.ndim == 1 else torch.eye(len(M)))).abs().max().item())
    return max(found)


def decay(model, optimizer, steps=10):
    "Steps in which nothing is learned."
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    return distance(model)


def test_timms_optimizer_and_ours():
    """timm leaves vectors alone and decays matrices: a UNS drifts to zero. With our groups nothing
    that is a similarity does, and all filters still decay."""
    model = to_nsl(small(), "static_uns").model
    assert decay(model, create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05)) > 0.04
    for kind in ("static_uns", "static_dns"):
        model, before = to_nsl(small(), kind).model, small().conv1[0].weight
        groups = partial(parameter_groups, weight_decay=0.05, vectors=False)
        ours = create_optimizer_v2(model, "adamw", lr=0.1, param_group_fn=groups)
        assert decay(model, ours) == 0
        assert model.conv1[0].weight.abs().sum() < before.abs().sum()
        given = create_optimizer_v2(groups(model), "sgd", lr=0.1)
        assert decay(to_nsl(small(), kind).model, given) == 0
    by_timm = timm.optim.param_groups_weight_decay(small(), 0.05)
    plain = [sum(p.numel() for p in g["params"]) for g in reversed(by_timm)]
    assert [sum(p.numel() for p in g["params"]) for g in groups(small())] == plain


def test_the_whole_way(tmp_path):
    "Convert, freeze, a new head, train, fold, save; a plain timm model loads it."
    model = to_nsl(small(), "static_uns").model
    model.reset_classifier(3)
    similarity_parameters(model, freeze=True)
    model.get_classifier().requires_grad_()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    x, y = torch.randn(12, 3, 64, 64), torch.arange(12) % 3
    x[torch.arange(12), y] += 5  # a color for each class
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=0.1)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses) < losses[0] / 2
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert len(frozen) > 20 and distance(model) > 0
    torch.save(fold(model.eval()).state_dict(), tmp_path / "mine.pt")
    plain = timm.create_model("resnet10t", num_classes=3).eval()
    plain.load_state_dict(torch.load(tmp_path / "mine.pt", weights_only=True))
    torch.testing.assert_close(plain(x), model(x), rtol=1e-3, atol=1e-3)


def test_large_kernels_are_announced():
    "ViT-tiny's patches of 16x16 under dynamic UNS: 5.7 M to 81 M, said before it is done."
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = to_nsl(net, "dynamic_uns").model
    (told,) = [str(w.message) for w in seen if "dynamic_uns grows" in str(w.message)]
    n = sum(p.numel() for p in model.parameters())
    assert f"from 5.7 M to {n / 1e6:.1f} M parameters: patch_embed.proj, a 16x16 kernel" in told
    assert n > 80e6 and "65,536 numbers at every location" in told and "dynamic_dns" in told


@pytest.mark.parametrize("kind", ["static_uns", "dynamic_dns", "dynamic_uns"])
def test_onnx_of_any_network(kind, tmp_path):
    "By `to_onnx`, which checks it, and by PyTorch's own exporter."
    import onnxruntime

    options = dict(hidden=4) if kind.startswith("dynamic") else {}
    model = to_nsl(small(), kind, "layer*conv*", **options).model.eval()
    with torch.no_grad():
        for p in similarity_parameters(model):
            p.add_(0.01 * torch.randn_like(p))
    x = torch.randn(2, 3, 64, 64)
    assert to_onnx(model, tmp_path / "a.onnx", x) <= TOLERANCE
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(tmp_path / "b.onnx"), dynamo=False)
        wanted = model(x)
    for name in "ab":
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"))
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-3)


BROKEN = """
import sys, types
if {there}:  # installed, and another version
    package = types.ModuleType("pytorch_metric_learning")
    package.__path__, package.__version__ = [], "3.0"
    package.__spec__ = types.SimpleNamespace(submodule_search_locations=[])
    sys.modules["pytorch_metric_learning"] = package
else:
    sys.modules["pytorch_metric_learning"] = None
make = "from nsl_repro.training.embedding import make_objective as make; make('triplet', 8)"
for do in ("import nsl_repro.pddm.plugins", make):
    try:
        exec(do)
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize("there", [True, False])
def test_install_it_only_where_it_is_missing(there):
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(there=there)], capture_output=True, text=True, cwd=ROOT
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert ("pip install" in line) is not there, line
        assert ("installed but fails" in line and "below 3" in line) is there, line


@pytest.fixture
def release(tmp_path, monkeypatch):
    "A release with one model, in a folder."
    from nsl_repro.base.releases import add_to_release

    monkeypatch.setenv("NSL_DATA", str(tmp_path / "data"))
    arguments = dict(method="static_uns", num_classes=10, width=0.125)
    torch.manual_seed(0)
    net = cnn9(**arguments)
    prepare = Preprocessing(input="raw", size=[3, 32, 32])
    folder = keep_model(tmp_path / "kept", net, "cnn9", arguments, prepare)
    add_to_release(tmp_path / "release", {"nsl_cifar/cifar10/static_uns": folder})
    return tmp_path / "release", net.eval()


def test_a_model_by_its_name(release, tmp_path, monkeypatch):
    "From a folder, from an archive, from an address, from $NSL_MODELS: the same network."
    place, net = release
    name, x = "nsl_cifar/cifar10/static_uns", torch.randn(2, 3, 32, 32)
    handler = partial(SimpleHTTPRequestHandler, directory=place)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    archive = "nsl_cifar-cifar10-static_uns.zip"
    try:
        assert list_models(place) == list_models(address) == [name]
        models = [load(name, place), load(name, address), load(f"{address}/{archive}")]
        models.append(load(str(place / archive)))
        monkeypatch.setenv("NSL_MODELS", address)
        models.append(load(name))
        for model in models:
            torch.testing.assert_close(model(x), net(x))
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(FileNotFoundError, match="did you mean nsl_cifar/cifar10/static_uns"):
        load("nsl_cifar/cifar10/static_dns", place)
    monkeypatch.delenv("NSL_MODELS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no release at"):
        load(name)
    with pytest.warns(UserWarning, match="there are no models at"):
        assert list_models() == []


def test_a_run_goes_into_a_release(nsl_repro, tmp_path):
    "By the command, from a finished run; a fresh process loads it by name."
    run = ["run", "nsl_cifar", "-p", "preset=smoke", "-p", "methods=static_dns"]
    done = nsl_repro(*run, "-o", tmp_path / "out", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    where = ["-o", tmp_path / "out", "--release", tmp_path / "release"]
    done = nsl_repro("export", "nsl_cifar__digits__smoke__static_dns", *where)
    assert done.returncode == 0, done.stderr
    code = (
        "import nsl_repro; print(nsl_repro.list_models()); "
        "print(type(nsl_repro.load('nsl_cifar/digits/static_dns')).__name__)"
    )
    words = dict(NSL_MODELS=str(tmp_path / "release"), NSL_DATA=str(tmp_path / "data"))
    fresh = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert fresh.stdout.splitlines() == ["['nsl_cifar/digits/static_dns']", "CNN9"], fresh.stderr
