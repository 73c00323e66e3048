"""Every experiment notebook runs at `smoke` through the command: with all the methods it offers on
embedded data, with its default ones elsewhere. `make soak` runs it on every data set, `make test`
on those that differ in more than their files."""

import os
from typing import get_args

import pytest
from conftest import ROOT

from nsl_repro.results.ledger import entry_name, load_ledger, run_folder, write_entry
from nsl_repro.results.methods import method_style
from nsl_repro.command.cli import FAILED, NO_DATA
from nsl_repro.command.parameters import read_parameters

EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))
EMBEDDED = {"digits", "synthetic", "dictionary", "planted"}  # never missing
EVERY_EXPERIMENT_HAS = {
    "dataset",
    "preset",
    "seeds",
    "device",
    "data_root",
    "output",
    "resume",
    "download",
}
METHODS = {"atlas": "systems"}  # experiment -> what its methods are called there
NO_PAPER = {"atlas"}  # the scale of the papers is not its question


@pytest.fixture(params=EXPERIMENTS, ids=lambda path: path.stem)
def experiment(request):
    return request.param


def test_parameters(experiment):
    parameters = read_parameters(experiment)
    wanted = EVERY_EXPERIMENT_HAS | {METHODS.get(experiment.stem, "methods")}
    assert not (missing := wanted - set(parameters)), f"missing in the parameters cell: {missing}"
    assert not (silent := [p.name for p in parameters.values() if not p.help]), (
        f"without a comment: {silent}"
    )
    scales = ["smoke", "quick", "small", *(["paper"] if experiment.stem not in NO_PAPER else [])]
    for word in scales:
        assert word in parameters["preset"].expects


SOAK = os.environ.get("NSL_SOAK") == "1"
TWINS = {"cifar100": "cifar10", "cars": "cub", "mini_imagenet": "cub"}  # used as another one is
TWINS["cifar10"] = "digits"  # but for the one that is about it
ITS_OWN = {"nsl_cifar": "cifar10", "atlas": "cifar10"}  # other systems there than on digits


def datasets(path):
    "The data sets that an experiment offers, without twins."
    offered = get_args(read_parameters(path)["dataset"].type)
    own = ITS_OWN.get(path.stem)
    return [n for n in offered if SOAK or n == own or TWINS.get(n) not in offered]


OTHER_VARIANT = {"nsl_stability": {"dns_no_bn"}}  # methods that the default variant has not
FINDS_OUT = {
    "bench_dynamic",
    "nsl_kernel_shape",
    "atlas",
}  # what this machine or this data set can run


def methods(path, dataset):
    """What to ask for, and what must then be in the ledger. An empty default means all methods,
    except where the notebook finds out which ones it can run."""
    offered = read_parameters(path)[METHODS.get(path.stem, "methods")]
    everything = list(get_args(get_args(offered.type)[0]))
    everything = [m for m in everything if m not in OTHER_VARIANT.get(path.stem, ())]
    if not offered.default:
        return [], [] if path.stem in FINDS_OUT else everything
    asked = everything if dataset in EMBEDDED else offered.default
    return ["-p", "methods=" + ",".join(asked)], asked


@pytest.mark.parametrize(
    "path, dataset",
    [(p, d) for p in EXPERIMENTS for d in datasets(p)],
    ids=lambda x: x if isinstance(x, str) else x.stem,
)
def test_smoke(path, dataset, nsl_repro, tmp_path):
    typed, asked = methods(path, dataset)
    done = nsl_repro(
        "run",
        path.stem,
        "-p",
        "preset=smoke",
        "-p",
        f"dataset={dataset}",
        *typed,
        "-o",
        tmp_path,
        timeout=300,
    )
    if done.returncode == NO_DATA and dataset not in EMBEDDED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path, experiment=path.stem, dataset=dataset, preset="smoke")
    assert entries and len(list((tmp_path / "runs").glob("*/entry.json"))) >= len(entries)
    assert not (tmp_path / "results").exists()  # nothing is published
    if asked:
        assert {e.method for e in entries} == set(asked)
    table = nsl_repro("table", path.stem, "--dataset", dataset, "--preset", "smoke", "-o", tmp_path)
    assert table.returncode == 0, table.stderr
    assert all(method_style(e.method)[0] in table.stdout for e in entries)


def test_released_predictors(nsl_repro, tmp_path):
    """Runs of the released variant keep the names that they had before there were variants, and
    heads are no methods of it."""
    asked = ["dynamic_dns", "dns_no_bn", "uns_with_bn", "dns_no_log_eps"]
    what = ["nsl_stability", "-p", "preset=smoke", "-p", "variant=released", "-o", tmp_path]
    done = nsl_repro("run", *what, "-p", f"methods={','.join(asked)}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path, experiment="nsl_stability")
    assert not any("variant" in e.parameters for e in entries)
    assert {entry_name(e).removeprefix("nsl_stability__digits__smoke__") for e in entries} == {
        "dynamic_dns__seed0__cfef3f97",
        "dns_no_bn__seed0__c1afee0d",
        "uns_with_bn__seed0__cee65f43",
        "dns_no_log_eps__seed0__abaf7a18",
    }
    refused = nsl_repro("run", *what, "-p", "methods=cnn_direct")
    assert refused.returncode == FAILED
    assert "methods must be of variant released, got 'cnn_direct'." in refused.stderr


def test_movement_of_an_interrupted_run(nsl_repro, tmp_path):
    """A head that is trained again from its checkpoint keeps the movement that was measured."""
    what = ["nsl_stability", "-p", "preset=smoke", "-p", "methods=cnn_fc,static_uns_direct"]
    done = nsl_repro("run", *what, "-o", tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    before = load_ledger(tmp_path, experiment="nsl_stability")
    for kind in ("moved", "moved_by_head", "estimate", "features", "error", "loss"):
        assert all(e.curves[f"{kind}_at_0.1"][0] > 0 for e in before)
    for e in before:
        (run_folder(e, tmp_path) / "entry.json").unlink()
    assert nsl_repro("run", *what, "-o", tmp_path).returncode == 0
    after = load_ledger(tmp_path, experiment="nsl_stability")
    assert [e.curves for e in after] == [e.curves for e in before]


def test_another_network(nsl_repro, tmp_path):
    """ImageNet's other network; and a run that was made in two precisions, each of which gets a
    table of its own."""
    done = nsl_repro(
        "run",
        "nsl_imagenet",
        "-p",
        "preset=smoke",
        "-p",
        "network=resnet18",
        "-p",
        "methods=cnn,dynamic_uns",
        "-o",
        tmp_path,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path)
    assert {(e.method, e.parameters["network"]) for e in entries} == {
        ("cnn", "resnet18"),
        ("dynamic_uns", "resnet18"),
    }
    write_entry(
        entries[0].model_copy(
            update={"parameters": {**entries[0].parameters, "precision": "bfloat16"}}
        ),
        tmp_path,
    )
    table = nsl_repro("table", "-o", tmp_path)
    assert table.returncode == 0, table.stderr
    for precision in ("float32", "bfloat16"):
        assert (
            "nsl-repro run nsl_imagenet -p dataset=digits -p preset=smoke -p network=resnet18 -p "
            f"precision={precision}" in table.stdout
        )


@pytest.mark.parametrize("experiment", ["pddm_retrieval", "pddm_ablation", "pddm_end_to_end"])
def test_frozen_features_alone(experiment, nsl_repro, tmp_path):
    """Nothing is trained, so there are no curves, panels or trials to show."""
    what = [experiment, "-p", "preset=smoke", "-p", "methods=frozen", "-o", tmp_path]
    done = nsl_repro("run", *what)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {e.method for e in load_ledger(tmp_path, experiment=experiment)} == {"frozen"}


def test_list_names_every_experiment(nsl_repro):
    done = nsl_repro("list", "-v")
    assert done.returncode == 0, done.stderr
    for path in EXPERIMENTS:
        assert f"\n{path.stem}" in "\n" + done.stdout
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            assert len(line.split()) > 4, f"an experiment without a `> ` line: {line}"
