"""The plan of the paper's runs: it names only what there is, its rehearsal goes through, and a run
that cannot end in time waits for the next hour without losing a step."""

import time
from dataclasses import replace
from typing import get_args

import pytest
import torch

from nsl_repro.command.parameters import read_parameters, resolve
from nsl_repro.command.plan import Hour, PlannedRun, read_plan
from nsl_repro.command.runner import find_notebook
from nsl_repro.data.images import load_dataset
from nsl_repro.results.claims import paper_results
from nsl_repro.training.classify import train
from nsl_repro.training.loop import OutOfTime
from nsl_repro.training.models import cnn9
from nsl_repro.training.recipe import RECIPES


def test_the_plan_names_only_what_there_is():
    for run in {replace(run, seed=0) for run in read_plan()}:
        parameters = read_parameters(find_notebook(run.experiment))
        assert resolve(parameters, run.values, run.experiment)["methods"] == [run.method]
        assert run.preset in get_args(parameters["preset"].type)


def test_the_plan_holds_every_row_that_can_be_judged():
    "All methods and baselines of the paper's claims, ImageNet's apart: it takes days."
    planned = {(run.experiment, run.dataset, run.method) for run in read_plan()}
    for claim in paper_results().claims:
        if claim.variant != "paper" or not claim.is_gap or claim.dataset == "imagenet":
            continue
        for method in (*claim.methods, claim.baseline):
            assert (claim.experiment, claim.dataset, method) in planned, (claim.id, method)


def test_the_rehearsal(nsl_repro, tmp_path):
    "Every kind of run of the plan, recorded, skipped the second time, and the tables at the end."
    command = ["paper", "--rehearse", "--budget", "20m", "-o", tmp_path]
    quiet = dict(OMP_NUM_THREADS="1", NSL_PROGRESS="off")
    first = nsl_repro(*command, timeout=900, **quiet)
    assert first.returncode == 0, first.stdout + first.stderr
    ends = [line for line in first.stdout.splitlines() if " seed 0: " in line]
    assert len(ends) >= 7 and all(line.endswith(": finished") for line in ends), ends
    assert "**table 4, cifar10**" in first.stdout and "24 comparisons" in first.stdout
    again = nsl_repro(*command, **quiet)
    assert again.stdout.count("in the ledger already") == len(ends)


def trained(folder, deadline=None, monkeypatch=None, on_step=None):
    "Forty steps on digits; with a deadline, seconds from now."
    train_set, _ = load_dataset("digits")
    if deadline is not None:
        monkeypatch.setenv("NSL_DEADLINE", str(time.time() + deadline))
    torch.manual_seed(0)
    net = cnn9("static_dns", width=0.125, in_channels=1, image_size=16)
    plan = replace(RECIPES["clean"].of_variant("paper"), batch_size=16)
    try:
        return train(
            net,
            train_set,
            None,
            recipe=plan,
            steps=40,
            segments=8,
            flip=False,
            checkpoint=folder / "checkpoint.pt",
            on_step=on_step,
        )
    finally:
        if monkeypatch:
            monkeypatch.delenv("NSL_DEADLINE", raising=False)


def test_a_run_that_cannot_end_in_time_waits(tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "whole")
    with pytest.raises(OutOfTime, match="s more are needed, 0 s are left"):
        trained(tmp_path / "cut", -1.0, monkeypatch)
    assert trained(tmp_path / "cut").curves == whole.curves
    plenty = trained(tmp_path / "whole", 1e6, monkeypatch)
    assert plenty.curves == whole.curves


def test_a_slow_start_puts_nothing_off(tmp_path, monkeypatch):
    "Kernels are compiled and a graph is recorded in the first segment only."
    trained(tmp_path, 25.0, monkeypatch, lambda done: time.sleep(6) if done == 1 else None)


def test_what_is_put_off_is_told(tmp_path):
    "The experiment stops by itself, and the plan goes on."
    run = PlannedRun("nsl_cifar", "digits", "cnn", 0, "quick")
    hour = Hour(0.1, tmp_path)
    assert hour.carry_out(run).startswith("put off: ") and "more are needed" in hour.outcomes[run]
