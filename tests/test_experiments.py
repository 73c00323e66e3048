"""Every experiment notebook runs at `smoke`, with all its methods, through the command."""
from typing import get_args

import pytest
from conftest import ROOT

from nsl_repro.results import load_ledger, method_style
from nsl_repro.runner import NO_DATA, read_parameters

EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))
EMBEDDED = {"digits", "synthetic"}  # never missing
EVERY_EXPERIMENT_HAS = {"dataset", "methods", "preset", "seeds", "device", "data_root", "output", "resume", "download"}


@pytest.fixture(params=EXPERIMENTS, ids=lambda path: path.stem)
def experiment(request):
    return request.param


def test_parameters(experiment):
    parameters = read_parameters(experiment)
    assert not (missing := EVERY_EXPERIMENT_HAS - set(parameters)), f"missing in the parameters cell: {missing}"
    assert not (silent := [p.name for p in parameters.values() if not p.help]), f"without a comment: {silent}"
    for word in ("smoke", "quick", "small", "paper"):
        assert word in parameters["preset"].expects


def datasets(path):
    "The data sets that an experiment offers."
    return get_args(read_parameters(path)["dataset"].type)


@pytest.mark.parametrize("path, dataset", [(p, d) for p in EXPERIMENTS for d in datasets(p)], ids=lambda x: x if isinstance(x, str) else x.stem)
def test_smoke(path, dataset, nsl_repro, tmp_path):
    done = nsl_repro("run", path.stem, "-p", "preset=smoke", "-p", f"dataset={dataset}", "-o", tmp_path, timeout=300)
    if done.returncode == NO_DATA and dataset not in EMBEDDED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path, experiment=path.stem, dataset=dataset, preset="smoke")
    assert entries and len(list((tmp_path / "results").glob("*.json"))) >= len(entries)
    asked = read_parameters(path)["methods"].default
    if asked:
        assert {e.method for e in entries} == set(asked)
    table = nsl_repro("table", path.stem, "--dataset", dataset, "--preset", "smoke", "-o", tmp_path)
    assert table.returncode == 0, table.stderr
    assert all(method_style(e.method)[0] in table.stdout for e in entries)


def test_list_names_every_experiment(nsl_repro):
    done = nsl_repro("list", "-v")
    assert done.returncode == 0, done.stderr
    for path in EXPERIMENTS:
        assert f"\n{path.stem}" in "\n" + done.stdout
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            assert len(line.split()) > 4, f"an experiment without a `> ` line: {line}"
