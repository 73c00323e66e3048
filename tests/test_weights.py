"""What a run leaves goes to somebody else: another process, onnxruntime, TensorBoard. It is the
same network there, with the same numbers."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsl_repro import load
from nsl_repro.data.images import channel_statistics, hold_out, limit, load_dataset, to_input
from nsl_repro.training.models import cnn9
from nsl_repro.results.ledger import load_ledger, run_folder
from nsl_repro.training.classify import train
from nsl_repro.training.loop import load_checkpoint, make_accelerator
from nsl_repro.training.recipe import RECIPES
from nsl_repro.training.weights import TOLERANCE, Preprocessing, export, keep_model, to_onnx

METHODS = ["static_dns", "dynamic_uns"]
ELSEWHERE = """
import sys
import numpy, torch
import nsl_repro

model = nsl_repro.load(sys.argv[1])
with torch.no_grad(): logits = model(model.preprocess(torch.from_numpy(numpy.load(sys.argv[2]))))
numpy.save(sys.argv[3], logits.numpy())
"""


def curves(folder):
    "What TensorBoard reads there: name -> (steps, values)."
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: list(zip(*((e.step, e.value) for e in events.Scalars(tag))))
        for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def runs(nsl_repro, tmp_path_factory):
    "The folder of results, and its runs: one a method, tracked."
    root = tmp_path_factory.mktemp("results")
    done = nsl_repro(
        "run",
        "nsl_cifar",
        "-p",
        "preset=smoke",
        "-p",
        f"methods={','.join(METHODS)}",
        "-p",
        "tracker=tensorboard",
        "-p",
        "device=cpu",
        "-o",
        root,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root, {e.method: e for e in load_ledger(root)}


@pytest.fixture(scope="module")
def test_set():
    return limit(load_dataset("digits")[1], 100)  # what `smoke` tests on


@pytest.fixture(scope="module", params=METHODS)
def exported(request, runs, nsl_repro, tmp_path_factory):
    "A run's entry and folder, and the folder that the command exported."
    root, entries = runs
    folder = tmp_path_factory.mktemp(request.param) / "model"
    name = f"nsl_cifar__digits__smoke__{request.param}"
    done = nsl_repro("export", name, folder, "--onnx", "-o", root)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder)), done.stderr
    entry = entries[request.param]
    return entry, run_folder(entry, root), folder


@pytest.fixture(scope="module")
def logits(exported, test_set):
    "Of the test images, from a process that has only the folder."
    folder = exported[2]
    files = [folder.parent / "images.npy", folder.parent / "logits.npy"]
    np.save(files[0], test_set.images.numpy())
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **threads}
    command = [sys.executable, "-c", ELSEWHERE, folder, *files]
    subprocess.run(command, cwd=folder.parent, check=True, timeout=120, env=environ)
    return torch.from_numpy(np.load(files[1]))


def test_the_same_network_elsewhere(exported, logits, test_set):
    entry, run, folder = exported
    accuracy = 100 * (logits.argmax(1) == test_set.labels).float().mean().item()
    assert accuracy == pytest.approx(entry.metrics["test_accuracy"])
    model = load(folder)
    trained = cnn9(**model.config.arguments).to(memory_format=torch.channels_last).eval()
    trained.load_state_dict(load_checkpoint(run / "checkpoint.pt")["model"])
    # what `smoke` trains on: a fifth is held out
    train_set = hold_out(limit(load_dataset("digits")[0], 256), 51)[0]
    statistics = channel_statistics(train_set.images)
    inputs = to_input(test_set.images, "standardised", *statistics)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert model.preprocess(test_set.images).equal(inputs) and trained(inputs).equal(logits)


def test_onnx_gives_the_same_logits(exported, logits, test_set):
    folder = exported[2]
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for n in (1, 100):
        found = torch.from_numpy(session.run(None, {"input": test_set.images[:n].numpy()})[0])
        torch.testing.assert_close(
            found, logits[:n], rtol=0, atol=TOLERANCE * max(1, logits.abs().max().item())
        )


def test_the_model_card(exported):
    entry, _, folder = exported
    card = ModelCard.load(folder / "README.md")
    front = card.data.to_dict()
    assert (front["license"], front["library_name"]) == ("mit", "nsl_repro")
    assert (front["datasets"], front["metrics"]) == (["digits"], ["accuracy"])
    assert f"| `test_accuracy` | {entry.metrics['test_accuracy']:.4g} |" in card.text
    assert "CC BY 4.0" in card.text and "next to nothing" in card.text
    if entry.commit:
        assert entry.commit[:12] in card.text


def test_a_pickle_is_never_opened(runs, tmp_path):
    root, _ = runs
    folder, trap = (
        export("nsl_cifar__digits__smoke__static_dns", tmp_path / "model", root),
        tmp_path / "sprung",
    )

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    torch.save(Trap(), folder / "model.safetensors")
    with pytest.raises(ValueError, match="is damaged or belongs to another model"):
        load(folder)
    data = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text()) | {
        "weights": hashlib.sha256(data).hexdigest()
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(folder)
    assert not trap.exists()


def test_a_missing_package(runs, nsl_repro, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ImportError, match=r"onnxruntime, which is not installed: pip install 'nsl_repro\[onnx\]'"
    ):
        export("nsl_cifar__digits__smoke__static_dns", tmp_path / "model", runs[0], onnx=True)
    assert not list(tmp_path.iterdir())


def test_tracked(runs):
    root, entries = runs
    for entry in entries.values():
        found = curves(run_folder(entry, root) / "tracker" / "nsl_repro")
        assert set(found) == {"train_loss", "train_accuracy", "val_accuracy"}
        for name, (steps, values) in found.items():
            assert list(steps) == entry.curves["val_step" if name.startswith("val") else "step"]
            assert values == tuple(
                np.float32(entry.curves[name])
            )  # TensorBoard's numbers have 32 bits


def test_tracked_and_interrupted(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done):
        if done == 5:
            raise Interrupted

    images, held = hold_out(load_dataset("digits")[0], 100)

    def run(on_step=None):
        torch.manual_seed(0)
        return train(
            cnn9("cnn", width=0.125, in_channels=1, image_size=16),
            images,
            None,
            held,
            recipe=replace(RECIPES["clean"], batch_size=16, lr=0.01),
            steps=8,
            segments=4,
            flip=False,
            accelerator=make_accelerator("cpu", tracker="tensorboard"),
            checkpoint=tmp_path / "checkpoint.pt",
            on_step=on_step,
        )

    with pytest.raises(Interrupted):
        run(interrupt)
    expected = run().curves
    steps, values = curves(tmp_path / "tracker" / "nsl_repro")["val_accuracy"]
    assert list(steps) == expected["val_step"] == [2, 4, 6, 8] and values == tuple(
        np.float32(expected["val_accuracy"])
    )


@pytest.mark.parametrize("method", ["static_uns", "dynamic_dns"])
def test_a_model_kept_before_there_were_variants(method, tmp_path):
    "Its description names no variant: it is the released network."
    sizes = dict(method=method, width=0.125, in_channels=1, image_size=16)
    net = cnn9(**sizes, variant="released").eval()
    arguments = sizes | dict(variant="released")
    keep_model(tmp_path, net, "cnn9", arguments, Preprocessing(input="raw", size=[1, 16, 16]))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["arguments"].pop("variant") == "released"
    file.write_text(json.dumps(config))
    images = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(images), net(images))


def test_a_model_says_its_variant(tmp_path):
    "Also where the default was taken, so that a later default cannot change it."
    sizes = dict(method="cnn", width=0.125, in_channels=1, image_size=16)
    prepare = Preprocessing(input="raw", size=[1, 16, 16])
    keep_model(tmp_path, cnn9(**sizes), "cnn9", sizes, prepare)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arguments"]["variant"] == "paper"


class Several(torch.nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x, 2 * x)


@pytest.mark.parametrize("give", [lambda *x: x, lambda *x: list(x), lambda x, y: dict(x=x, y=y)])
def test_several_outputs_are_refused_by_onnx(tmp_path, give):
    with pytest.raises(ValueError, match="^model must give one tensor to be written, got "):
        to_onnx(Several(give), tmp_path / "model.onnx", torch.ones(2, 3))
    assert not list(tmp_path.iterdir())
