"""A step that is recorded and replayed is the step that is made by hand: on a CPU to the last bit.

A CUDA graph needs a GPU; tests/test_gpu.py has it. Here a recorder stands in that repeats the step
in Python, after the same three warm-ups. What a recording must not do, to wait for the device or
to use memory of the host, is refused on the device `meta`, where there is nothing to wait for.
"""

import contextlib
import math
import warnings
from dataclasses import replace

import pytest
import torch
from accelerate.state import PartialState
from torch import library as torch_library, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nsl_repro.data.draws import batch_indices
from nsl_repro.data.images import ImageSet, crop_table, load_dataset, to_device
from nsl_repro.data.splits import load_splits
from nsl_repro.training import classify, loop
from nsl_repro.training.loop import Run, make_accelerator, recording
from nsl_repro.training.models import METHODS, OPERATORS, cnn9, spherenet9
from nsl_repro.training.recipe import RECIPES, make_optimizer

DIGITS = load_dataset("digits")[0].subset(torch.arange(200))
CLEAN = replace(RECIPES["clean"], batch_size=16, lr=0.01)
ADAM = replace(RECIPES["spherenet"], batch_size=16)
GATES = dict(budget=5, relaxation="hard_concrete")  # they draw random numbers


def played(step):
    "A recorder for any device: it repeats the step in Python, after three warm-ups."
    for _ in range(3):
        step()
    return step


def network(method="cnn", **options):
    torch.manual_seed(0)
    return cnn9(method, width=0.125, in_channels=1, image_size=16, **options)


def run(recorder, build=network, steps=12, recipe=CLEAN, data=DIGITS, dtype=None, **options):
    "A run by hand (recorder None) or a recorded one, drawn five steps at a time."
    net, engine = build(), options.setdefault("accelerator", make_accelerator("cpu"))
    net.to(engine.device, dtype, memory_format=torch.channels_last)
    net, optimizer = engine.prepare(net, make_optimizer(net, recipe))
    options = dict(segments=3, identity={}, curves=classify._no_points(), at_once=5) | options
    prepare = classify._preparation(data, recipe, engine.device)
    prepared = lambda images: prepare(images).to(dtype)
    chosen = contextlib.nullcontext() if recorder == "graph" else recording(recorder)
    with chosen, Run(net, optimizer, steps, **options) as made:
        classify._steps(made, net, data.to(engine.device), prepared, dict, recipe, 0, False)
    assert (made.recorded is None) == (recorder is None)
    return made


def same(first, second):
    "Weights, optimizer, curves and counts are equal to the last bit."
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values()):
        assert torch.equal(a, b)
    one, other = (made._optimizer_state() for made in (first, second))
    assert one["param_groups"] == other["param_groups"]
    for a, b in zip(one["state"].values(), other["state"].values()):
        assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("done", "kept", "skipped", "diverged", "curves"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("method", METHODS)
def test_replayed_is_by_hand(method):
    build = lambda: network(method)
    same(run(None, build), run(played, build))


def test_in_half_and_double_precision():
    half = dict(accelerator=make_accelerator("cpu", "bfloat16"))
    for options in (half, dict(dtype=torch.float64)):
        same(run(None, **options), run(played, **options))


@pytest.mark.parametrize("build", [network, lambda: network("static_dns", shape=GATES)])
@pytest.mark.parametrize("recipe", [CLEAN, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_optimizers_clipping_and_random_numbers(build, recipe, clip):
    same(run(None, build, recipe=recipe, clip=clip), run(played, build, recipe=recipe, clip=clip))


class Spoiled(nn.Module):
    "A network whose output is infinite for batches with a white image."

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        white = (x.amin((1, 2, 3)) > 0).any()
        return self.net(torch.where(white, x / 0, x))


def with_white(step):
    "The images; the first one of this step's batch is white."
    images = DIGITS.images.clone()
    images[batch_indices(len(DIGITS), 16, 0, step)[0]] = 255
    return ImageSet(images, DIGITS.labels, DIGITS.classes)


# of 12 steps in segments of 4, drawn 5 at a time: the first, an inner one, the last of a table, of
# a segment, the first of both, the last
@pytest.mark.parametrize("at", [0, 2, 4, 7, 5, 8, 11])
def test_a_bad_step_is_the_same_as_by_hand(at):
    data, said = with_white(at), []
    pad = replace(CLEAN, pad=0)
    for recorder in (None, played):
        with pytest.raises(loop.NonFinite) as error:
            run(recorder, Spoiled, recipe=pad, data=data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = run(recorder, Spoiled, recipe=pad, data=data, on_nonfinite="record")
        said.append((str(error.value), str(caught[0].message), made))
    assert said[0][:2] == said[1][:2]
    assert said[0][0].startswith(f"step {at + 1}: the input of net.")
    rows = batch_indices(len(DIGITS), 16, 0, at).tolist()
    assert f"(images {rows[0]}, {rows[1]}, {rows[2]}, ... of 16)" in said[0][0]
    same(said[0][2], said[1][2])
    assert said[1][2].diverged == said[1][2].done == at + 1
    assert len(said[1][2].timings) == len(said[0][2].timings)
    skipping = dict(recipe=pad, data=data, on_nonfinite="skip")
    by_hand, replayed = (run(r, Spoiled, **skipping) for r in (None, played))
    same(by_hand, replayed)
    assert replayed.skipped == 1
    assert all(v.isfinite().all() for v in replayed.model.state_dict().values())


def test_what_is_finite_the_second_time_is_still_refused():
    net, passes = network(), []

    def once(layer, inputs, out):  # in step 3, and not when that step is repeated
        passes.append(1)
        return out * math.nan if len(passes) == 3 + 3 else out

    net.stages[0].register_forward_hook(once)
    with pytest.raises(loop.NonFinite, match="step 3: the loss or a gradient is not finite"):
        run(played, lambda: net)


class Killed(Exception):
    pass


@pytest.mark.parametrize("recorders", [(played, played), (None, played), (played, None)])
@pytest.mark.parametrize("recipe", [CLEAN, ADAM], ids=["sgd", "adam"])
def test_killed_and_continued(recorders, recipe, tmp_path):
    "Also where one process replays its steps and the next makes them by hand."
    first, then = recorders
    build = lambda: network("static_dns", shape=GATES)
    whole = run(None, build, recipe=recipe, checkpoint=tmp_path / "whole.pt")

    def kill(done):
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        run(first, build, recipe=recipe, checkpoint=tmp_path / "c.pt", on_step=kill)
    same(whole, run(then, build, recipe=recipe, checkpoint=tmp_path / "c.pt"))
    before, after = (loop.load_checkpoint(tmp_path / name) for name in ("whole.pt", "c.pt"))
    assert before["optimizer"]["param_groups"] == after["optimizer"]["param_groups"]
    assert before.keys() == after.keys()


class Alone(TorchDispatchMode):
    "Refuses what a recording cannot repeat: copies from or to the host, and its random numbers."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        host = [t for t in tensors if t.device.type == "cpu"]
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        mixed = 0 < len(host) < len(tensors) and (copies or any(t.dim() for t in host))
        random = host and torch.Tag.nondeterministic_seeded in func.tags
        assert not mixed and not random, f"{func} uses the host"
        return out


class Made(TorchFunctionMode):
    "Refuses tensors on the device that are made from numbers in Python, which are copied there."

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        typed_in = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        assert not typed_in or out.device.type == "cpu", f"{func} copies from the host"
        return out


class Stayed(Exception):
    "The step has stayed on its device."


def stay(step):
    step()
    with Alone(), Made():
        step()
    raise Stayed


@pytest.fixture
def meta(monkeypatch):
    "The device `meta`, with what torch lacks there; reading a number back is an error by itself."
    recordable = loop._recordable

    def fused(optimizer, _):
        recordable(optimizer, True)
        optimizer._need_device_dtype_check_for_fused = False

    monkeypatch.setattr(loop, "_recordable", fused)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    ours = torch_library.Library("aten", "IMPL", "Meta")
    ours.impl("_fused_sgd_.tensor_lr", lambda *_, **__: None)
    yield torch.device("meta")
    ours._destroy()


SPHERES = [(operator, attention) for operator in OPERATORS for attention in (False, True)]


@pytest.mark.parametrize("method", [*METHODS, *SPHERES], ids=str)
def test_a_step_stays_on_its_device(method, meta):
    recipe, options = CLEAN, dict(width=0.125, in_channels=1, image_size=16)
    if method in SPHERES:
        recipe = replace(RECIPES["spherenet"], batch_size=16)
        net = spherenet9(*method, **options)
    else:
        net = network(method)
    net.to(meta).to(memory_format=torch.channels_last)
    standardised = classify._preparation(DIGITS, recipe, meta)
    with recording(stay), pytest.raises(Stayed):
        with Run(net, make_optimizer(net, CLEAN), 4, identity={}) as made:
            classify._steps(made, net, DIGITS.to(meta), standardised, dict, recipe, 0, False)


@pytest.mark.parametrize("fault", ["reads", "copies", "draws", "types in"])
def test_a_step_that_does_not_stay_is_found(fault, meta):
    net = network().to(meta)

    def disturb(layer, inputs, out):
        if fault == "reads":
            return out if out.sum() > 0 else -out
        if fault == "types in":
            return out + torch.as_tensor(1.0, device=meta)
        other = torch.ones(1) if fault == "copies" else torch.rand(())
        return out + other.to(meta)

    net.stages[0].register_forward_hook(disturb)
    with recording(stay), pytest.raises((AssertionError, RuntimeError)):
        with Run(net, make_optimizer(net, CLEAN), 4, identity={}) as made:
            prepare = classify._preparation(DIGITS, CLEAN, meta)
            classify._steps(made, net, DIGITS.to(meta), prepare, dict, CLEAN, 0, False)


def test_tables_do_not_grow():
    "However long the run: 512 steps of 128 images are half a megabyte."

    def draw(first, last):
        return crop_table(128, 0, first, last), torch.zeros(last - first, 128, dtype=torch.int32)

    tables, held = loop._Tables(draw, 64_000, torch.device("cpu")), set()
    for step in range(0, 64_000, 8000):
        tables.reach(step)
        tables.look_ahead()
        held.add(sum(t.nbytes for t in tables.tables))
    assert held == {512 * 128 * (3 + 4)}


def test_several_precisions_in_one_process():
    single, half = make_accelerator("cpu"), make_accelerator("cpu", "bfloat16")
    assert (single.mixed_precision, half.mixed_precision) == ("no", "bf16")
    x = torch.ones(1, 2)
    for engine, expected in ((single, torch.float32), (half, torch.bfloat16)) * 2:
        with engine.autocast():
            assert nn.Linear(2, 1)(x).dtype == expected
        net, seen = nn.Sequential(nn.Linear(2, 1)), []
        net[0].register_forward_hook(lambda layer, inputs, out: seen.append(out.dtype))
        engine.prepare(net)(x)
        assert seen == [expected]


def test_an_engine_keeps_its_device_beside_another():
    first = make_accelerator("cpu")
    for state in (vars(first.state), PartialState._shared_state):  # as that of a GPU would be
        state["device"] = torch.device("meta")
    second = make_accelerator("cpu")
    for engine, device in ((first, "meta"), (second, "cpu"), (first, "meta")):
        net = network()
        net, optimizer = engine.prepare(net, make_optimizer(net, CLEAN))
        assert engine.device.type == next(net.parameters()).device.type == device


def test_an_expanded_tensor_can_be_pinned(monkeypatch):
    "Pinned memory takes over the strides, and three numbers in one place cannot be written."
    pinned = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *_, **__: t)
    assert to_device(torch.ones(1).expand(3), "cuda").tolist() == [1, 1, 1]
    monkeypatch.undo()
    splits = load_splits("digits", train_images=20, validation_images=10, test_images=10)
    assert splits.mean.stride() == splits.std.stride() == (1,)


def test_what_a_gpu_leaves_in_checkpoint_and_metrics(monkeypatch, tmp_path):
    "Its random numbers, and how its convolutions round."
    state, given = torch.tensor([7], dtype=torch.uint8), []
    monkeypatch.setattr(loop.Continued, "gpu", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *values: given.append(values))

    def kill(done):
        if done == 7:
            raise Killed

    for recorder in (None, played):
        path = tmp_path / f"{recorder is None}.pt"
        with pytest.raises(Killed):
            run(recorder, checkpoint=path, on_step=kill)
        assert loop.load_checkpoint(path)["random_gpu"].equal(state)
        assert run(recorder, checkpoint=path).result().metrics["tf32"] == 1
    assert given == [(state, torch.device("cuda", 0))] * 2
