"""Recorded runs of nsl_kernel_shape are found again: a name holds what its run depends on."""

import pytest

from nsl_repro.command.cli import NO_DATA
from nsl_repro.results.ledger import entry_name, load_ledger, run_folder, write_entry

RECORDED = [  # data set, variant, methods and seed of published runs
    ("synthetic", "paper", ["cnn_pruned", "joint_static_dns", "shape_static_dns_priced"], 20),
    ("digits", "released", ["cnn", "cnn_pruned", "shape_static_dns"], 0),
    ("cifar10", "paper", ["cnn", "joint_static_dns"], 0),
]


@pytest.mark.parametrize("dataset, variant, methods, seed", RECORDED, ids=lambda v: str(v))
def test_recorded_runs_are_found(dataset, variant, methods, seed, nsl_repro, tmp_path):
    filters = dict(dataset=dataset, preset="quick", seed=seed, method=methods)
    published = load_ledger(experiment="nsl_kernel_shape", **filters)
    if dataset != "synthetic":  # whose runs know no variant
        published = [e for e in published if e.parameters.get("variant", "released") == variant]
    assert len(published) == len(methods)
    for e in published:  # as if they had been run here
        folder = run_folder(e, tmp_path)
        folder.mkdir(parents=True)
        (folder / "entry.json").write_bytes(write_entry(e, tmp_path).read_bytes())
    settings = dict(dataset=dataset, variant=variant, seeds=seed, methods=",".join(methods))
    typed = [text for k, v in settings.items() for text in ("-p", f"{k}={v}")]
    done = nsl_repro("run", "nsl_kernel_shape", *typed, "-o", tmp_path, timeout=300)
    if done.returncode == NO_DATA and dataset == "cifar10":
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    names = [entry_name(e) for e in load_ledger(tmp_path)]
    assert names == [entry_name(e) for e in published]  # nothing was trained under another name
