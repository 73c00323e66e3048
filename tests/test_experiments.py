"""Every experiment notebook runs at `smoke`, with all its methods, through the command."""
import pytest
from conftest import ROOT

from nsl_repro.data import DataNotFound, check_available
from nsl_repro.results import load_ledger, method_style
from nsl_repro.runner import read_parameters

EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))
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


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_smoke(experiment, dataset, nsl_repro, tmp_path):
    try:
        check_available(dataset)
    except DataNotFound as e:
        pytest.skip(str(e))
    done = nsl_repro("run", experiment.stem, "-p", "preset=smoke", "-p", f"dataset={dataset}", "-o", tmp_path, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path, experiment=experiment.stem, dataset=dataset, preset="smoke")
    assert entries and len(list((tmp_path / "results").glob("*.json"))) == len(entries)
    asked = read_parameters(experiment)["methods"].default
    if asked:
        assert {e.method for e in entries} == set(asked)
    table = nsl_repro("table", experiment.stem, "--dataset", dataset, "--preset", "smoke", "-o", tmp_path)
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
