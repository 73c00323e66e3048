"""Two processes under torchrun compute what one computes, and continue what one began, and the
other way round."""

import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from nsl_repro.training.imagenet import make_engine
from nsl_repro.training.sweep import launch, sweep
from nsl_repro.results.ledger import load_ledger

# In float64, so that whatever is not the order of summation shows: that alone is about 1e-16 per
# sum, and far below 1e-9 after twelve steps.
SHARED = """
import math, os, signal, sys
import torch
from nsl_repro.data.images import to_input
from nsl_repro.data.splits import Pictures, load_splits
from nsl_repro.training.imagenet import ImageNetRecipe, build_network, evaluate_images
from nsl_repro.training.imagenet import make_engine, train_network
from nsl_repro.training.loop import NonFinite, make_accelerator

recipe = ImageNetRecipe(
    batch_size=16, micro_batch=4, lr=.05, schedule='cosine', warmup=.2, label_smoothing=.1
)
splits = load_splits('digits', train_images=200, validation_images=13, test_images=103)

def run(method, accelerator, checkpoint=None, on_step=None, spoil=None, steps=12, **options):
    torch.manual_seed(0)
    # released: no batch norm over the four vectors of a micro-batch, which amplifies rounding
    model = build_network('cnn10', method, 10, .125, 16, 'released').double()
    if spoil:
        def hook(layer, inputs, output):
            return spoil(output) if layer.training else output
        model.stage2[0][0].register_forward_hook(hook)
    options |= dict(accelerator=accelerator, checkpoint=checkpoint, on_step=on_step)
    return model, train_network(model, splits, recipe=recipe, steps=steps, segments=3, **options)
"""
TWO = (
    SHARED
    + """
folder = sys.argv[1]
engine = make_engine('cpu')
assert engine.num_processes == 2

def keep(model, result, name):
    if engine.is_main_process:
        torch.save([model.state_dict(), result.metrics, result.curves], f'{folder}/{name}.pt')

for method in ('static_uns', 'dynamic_dns_norm'):
    keep(*run(method, engine), method)
model, result = run('static_uns', engine, f'{folder}/by_one.pt')  # which one process began
keep(model, result, 'continued')

prepare = lambda images: to_input(images, 'standardised', splits.mean, splits.std, torch.float64)
padded, pictures = make_accelerator('cpu'), Pictures(splits.test, 16)
try: evaluate_images(model, pictures, prepare, padded, batch_size=10)
except RuntimeError as error: print(error, flush=True)

steps = []  # done; in the third one an image of process 1 makes a layer infinite
def spoil(x):
    return x * math.inf if len(steps) == 2 and engine.process_index == 1 else x
bad = dict(spoil=spoil, on_step=steps.append, steps=4)
try: run('static_uns', engine, on_nonfinite='raise', **bad)
except NonFinite as error: print(f'process {engine.process_index}: {error}', flush=True)
steps.clear()
model, result = run('static_uns', engine, on_nonfinite='skip', **bad)
torch.save([model.state_dict(), result.metrics], f'{folder}/skipped_{engine.process_index}.pt')

def die(done):  # with 8 the second checkpoint would be there
    if done == 6: os.kill(os.getpid(), signal.SIGKILL)
try: run('static_uns', engine, f'{folder}/odd.pt', die)
finally: print('still alive', flush=True)
"""
)


def one():
    "What the processes are told, in this one."
    space = {}
    exec(SHARED, space)
    return space["run"]


def same(a, b):
    "Weights, running statistics and counters, but for rounding."
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-9, atol=1e-10, msg=lambda m: f"{name}: {m}"
        )


def same_numbers(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if name not in ("step_ms", "images_per_s", "loader_share"):
            assert math.isclose(a[name], b[name], rel_tol=1e-9), name


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """One process begins; two under torchrun do everything from the start, continue what it began,
    and are killed while they do it again."""
    folder = tmp_path_factory.mktemp("two")
    run, engine = one(), make_engine("cpu")

    def stop(done):
        if done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        run("static_uns", engine, folder / "by_one.pt", stop)
    (folder / "two.py").write_text(TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        folder / "two.py",
        folder,
    ]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NSL_PROGRESS": "off"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        done.returncode != 0
        and "still alive" not in done.stdout
        and f"Signal {signal.SIGKILL.value}" in done.stderr
    ), done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("method", ["static_uns", "dynamic_dns_norm"])
def test_two_processes_do_what_one_does(two, method):
    weights, metrics, curves = torch.load(two[0] / f"{method}.pt", weights_only=True)
    model, alone = one()(method, make_engine("cpu"))
    same(model.state_dict(), weights)
    same_numbers(alone.metrics, metrics)
    assert curves.pop("processes") == [2, 2, 2] and alone.curves.pop("processes") == [1, 1, 1]
    for name, curve in alone.curves.items():
        assert curves[name] == pytest.approx(curve, rel=1e-9), name


def test_killed_and_continued_by_another_number_of_processes(two):
    folder, _ = two
    run, engine = one(), make_engine("cpu")
    whole, expected = run("static_uns", engine)
    weights, metrics, curves = torch.load(
        folder / "continued.pt", weights_only=True
    )  # begun by one, finished by two
    same(whole.state_dict(), weights)
    same_numbers(expected.metrics, metrics)
    assert curves["processes"] == [1, 2, 2]
    model, result = run("static_uns", engine, folder / "odd.pt")  # begun by two, finished by one
    same(whole.state_dict(), model.state_dict())
    same_numbers(expected.metrics, result.metrics)
    assert result.curves["processes"] == [2, 1, 1]


def test_padded_evaluation_is_refused(two):
    assert "images were counted, not 103" in two[1]


def test_processes_agree_on_a_step_that_is_not_finite(two):
    folder, said = two
    for rank in (0, 1):
        assert (
            f"process {rank}: step 3: the output of stage2.0.0 (StaticNSLConv2d) is not finite"
            in said
        )
    (weights, metrics), (others, _) = (
        torch.load(folder / f"skipped_{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    same(weights, others)
    assert metrics["skipped_steps"] == 1 and all(w.isfinite().all() for w in weights.values())


def test_the_command_in_two_processes(tmp_path, monkeypatch, capfd):
    "One entry a run, the same whoever made it, and a second call that finds nothing to do."
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(2, "--method", "static_dns", "--method", "dynamic_uns", "-o", str(tmp_path))
    methods = ["static_dns", "dynamic_uns"]
    assert "static DNS" in capfd.readouterr().out
    entries = load_ledger(tmp_path)
    assert sorted(e.method for e in entries) == sorted(methods) and {e.device for e in entries} == {
        "2 x cpu, 1 threads"
    }
    found = sweep(methods=methods, device="cpu", output=tmp_path)
    assert {e.method: e for e in found} == {e.method: e for e in entries}
    alone = sweep(methods=methods, device="cpu", output=tmp_path / "alone")
    for mine in alone:
        (other,) = [e for e in entries if e.method == mine.method]
        assert mine.parameters == other.parameters and mine.metrics["test_loss"] == pytest.approx(
            other.metrics["test_loss"], rel=1e-4
        )  # float32
