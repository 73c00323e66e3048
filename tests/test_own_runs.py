"""Runs of one's own: they change no file of the repository, work from any directory, and are
published by a step of its own."""

import json
import os
import shutil
import subprocess
import sys

import forks
import pytest
from conftest import COMMAND, ROOT

from nsl_repro.command.runner import recorded_names
from nsl_repro.results.ledger import entry_names, load_ledger, load_published

SMOKE = ["run", "nsl_cifar", "-p", "preset=smoke"]
FEW = ["-p", "methods=cnn,dynamic_dns"]
STUB = """#!/bin/sh
PYTHONPATH='{clone}' exec '{python}' -c '{code}' "$@"
"""


def environment(**more):
    "Ours, without what a shell, make or another run may have left in it."
    names = ("NSL_PUBLISH", "NSL_RECORDED", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in names} | more


def call(*command, cwd, **more):
    "Run something to its end, and fail with everything that it printed."
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(NSL_PROGRESS="lines", OMP_NUM_THREADS="1", **more),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def changes(folder):
    "What git would commit or offer to add."
    return call("git", "status", "--porcelain", cwd=folder).stdout.split("\n")[:-1]


@pytest.fixture
def clone(tmp_path):
    """A fresh clone of what is committed, with the environment that `make` would build: its command
    is this interpreter with the clone's code."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    folder = tmp_path / "clone"
    call("git", "clone", "--quiet", ROOT, folder, cwd=tmp_path)
    command = folder / ".venv" / "bin" / "nsl-repro"
    command.parent.mkdir(parents=True)
    command.write_text(STUB.format(clone=folder, python=COMMAND[0], code=COMMAND[2]))
    command.chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    assert changes(folder) == []
    return folder


@pytest.fixture
def typed(clone, tmp_path):
    "Run the command with the code of the clone, in its folder; it has to end well."
    server = forks.Server(tmp_path, PYTHONPATH=str(clone)) if forks.WATCHES else None

    def run(*words):
        if server is None:
            return call(".venv/bin/nsl-repro", *words, cwd=clone)
        env = environment(NSL_PROGRESS="lines", OMP_NUM_THREADS="1")
        done = server.command(list(words), clone, 900, env)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    yield run
    if server:
        server.close()


def test_a_fresh_clone_stays_clean(clone):
    "After `make reproduce`, after the same by the command, and after its table."
    made = call("make", "reproduce", "PRESET=smoke", cwd=clone)
    lines = made.stdout.splitlines()
    headings = [line for line in lines if line.startswith("method ")]
    assert len(headings) == 1 and "nsl_cifar on digits, preset smoke" in made.stdout
    names = entry_names(clone / "data")
    methods = {name.split("__")[3] for name in names if "__digits__smoke__" in name}
    rows = lines[lines.index(headings[0]) + 2 :]
    assert len(rows[: rows.index("")]) == len(methods) > 5  # one line for each method
    *_, picture, executed = made.stderr.strip().splitlines()
    assert picture.startswith("picture: data/runs/") and executed.endswith(".ipynb")
    assert (clone / picture.removeprefix("picture: ")).read_bytes()[1:4] == b"PNG"
    assert (clone / executed.removeprefix("executed notebook: ")).is_file()
    again = call(".venv/bin/nsl-repro", *SMOKE, cwd=clone)
    assert "4/4" in made.stderr and "4/4" not in again.stderr  # finished runs are not done again
    told = call(".venv/bin/nsl-repro", "table", "nsl_cifar", "--preset", "smoke", cwd=clone)
    assert "These runs are yours." in told.stdout
    assert changes(clone) == []


def test_publishing_is_a_step_of_its_own(clone, typed):
    """It changes the ledger and the notebook, and trains nothing that is published already, but for
    the network whose similarity the notebook draws."""
    name = "data/results/nsl_cifar__digits__smoke__"
    typed(*SMOKE, *FEW, "-p", "seeds=0,1")
    assert changes(clone) == []
    typed("publish", "nsl_cifar__digits__smoke__cnn__seed1")
    (one,) = changes(clone)
    assert one.startswith(f"?? {name}cnn__seed1__")
    typed(*SMOKE, *FEW, "--publish")
    notebook, *entries = changes(clone)
    assert notebook == " M nbs/experiments/nsl_cifar.ipynb"
    runs = ["cnn__seed0", "cnn__seed1", "dynamic_dns__seed0"]
    assert [entry.rpartition("__")[0] for entry in entries] == [f"?? {name}{run}" for run in runs]
    before = load_published(clone / "data")
    shutil.rmtree(clone / "data" / "runs")  # as in the clone of somebody else
    call("git", "checkout", "--quiet", "nbs", cwd=clone)
    again = typed(*SMOKE, *FEW, "--publish").stderr
    assert "cnn seed 0" not in again and "dynamic_dns seed 0 100%" in again
    assert load_published(clone / "data") == before
    plain = typed(*SMOKE, *FEW)  # a reader wants to see it for himself
    assert "cnn seed 0 100%" in plain.stderr and load_published(clone / "data") == before
    found = [line.split("  ")[-1].strip() for line in plain.stdout.splitlines()]
    assert len([text for text in found if text.startswith("to the bit as published: ")]) == 2


def test_from_an_empty_directory(tmp_path):
    "Far from the project and from the user's home, with the library as it is installed here."
    before, here = changes(ROOT) if (ROOT / ".git").exists() else None, tmp_path / "empty"
    here.mkdir()
    done = call(*COMMAND, *SMOKE, cwd=here, HOME=str(tmp_path / "home"), **importable())
    assert f"not in the project's folder: results go to {here / 'data'}" in done.stderr
    assert "nsl_cifar on digits, preset smoke" in done.stdout
    assert [p.name for p in here.iterdir()] == ["data"]
    assert [p.name for p in (here / "data").iterdir()] == ["runs"]
    (executed,) = (here / "data" / "runs").glob("*.ipynb")
    assert f"executed notebook: data/runs/{executed.name}" in done.stderr
    names = recorded_names(executed)
    assert names and sorted(names) == entry_names(here / "data")
    listed = call(*COMMAND, "list", "-r", cwd=here, **importable()).stdout.splitlines()
    assert len([line for line in listed if line.endswith("  (yours)")]) == len(names)
    assert len(listed) == len({*names, *(line.split()[0] for line in listed)})  # and the published
    told = call(*COMMAND, "table", "nsl_cifar", "--dataset", "digits", cwd=here, **importable())
    assert "preset smoke" in told.stdout and "preset quick" in told.stdout
    refused = subprocess.run(
        [*COMMAND, *SMOKE, "--publish"], cwd=here, env=environment(**importable()), text=True,
        capture_output=True,
    )  # fmt: skip
    assert refused.returncode == 2 and "must be the project's to publish" in refused.stderr
    if before is not None:
        assert changes(ROOT) == before


def importable():
    "What makes this library importable elsewhere, if it is not installed at all."
    found = subprocess.run(
        [sys.executable, "-c", "import nsl_repro"], cwd="/", env=environment(), capture_output=True
    )
    return {} if found.returncode == 0 else {"PYTHONPATH": str(ROOT)}


def test_a_run_beside_published_seeds(nsl_repro, notebook, tmp_path):
    "On another processor the seeds are compared as samples, one line for each method."
    work = (
        "import json\n"
        "from nsl_repro.results.ledger import recorded_run\n"
        "run = dict(experiment='toy', dataset='digits', preset='smoke', parameters={})\n"
        "for method, values in json.loads(accuracies).items():\n"
        "    for seed, value in enumerate(values):\n"
        "        done = lambda folder: (dict(test_accuracy=value), {}, 0.0)\n"
        "        recorded_run(done, output, **run, method=method, seed=seed, device='cpu')\n"
    )
    toy = notebook("toy", "accuracies: str = '{}'\noutput: str = ''", work)

    def run(*more, **accuracies):
        return nsl_repro(
            "run", toy, "-p", f"accuracies={json.dumps(accuracies)}", "-o", tmp_path, *more
        )

    there = {
        "cnn": [91.0, 91.5, 91.2],
        "static_dns": [92.0, 92.2, 92.4],
        "static_uns": [90, 91, 92],
    }
    assert run("--publish", **there).returncode == 0
    assert len(load_published(tmp_path)) == 9
    for file in (tmp_path / "results").iterdir():  # somebody else's
        fields = json.loads(file.read_text())
        fields["versions"]["processor"] = "another"
        file.write_text(json.dumps(fields))
    shutil.rmtree(tmp_path / "runs")
    done = run(cnn=[91.1, 91.4, 91.0], static_dns=[80.0, 80.2, 80.4], static_uns=[91.5])
    assert done.returncode == 0, done.stderr
    report = done.stdout.split("Beside what was published")[1].splitlines()
    assert report[1:] == [
        "  CNN         as published: 91.2 ± 0.6 there, 91.2 ± 0.5 here",
        "  static DNS  differs from what was published: 92.2 ± 0.5 there, 80.2 ± 0.5 here "
        "(p = 6.2e-07)",
        "  static UNS  one run here, 91.5: within the prediction interval 82.2 to 99.8 of the "
        "published seeds",
    ]
    assert "p corrected for 3 methods" in report[0]
    assert len(load_ledger(tmp_path)) == 9 and "not as recorded" not in done.stdout
