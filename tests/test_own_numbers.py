"""Whoever checks published results has runs of their own: beside the published ones, never mixed
into their mean."""

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from nsl_repro.command.cli import BAD_USAGE
from nsl_repro.results.ledger import entry_name, load_published, run_folder, write_entry

ASKED = dict(experiment="nsl_cifar", dataset="digits", preset="quick", method="cnn")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    "The published runs of one method, and two seeds of one's own: accuracies of both."
    root = tmp_path_factory.mktemp("data")
    published = [e for e in load_published(ROOT / "data", **ASKED) if "variant" in e.parameters]
    for e in published:
        write_entry(e, root)
    theirs, ours = [e.metrics["test_accuracy"] for e in published], []
    for n, e in enumerate(published[:2]):
        ours.append(e.metrics["test_accuracy"] - 20 + n)
        metrics = e.metrics | {"test_accuracy": ours[-1]}
        mine = e.model_copy(update={"seed": 70 + n, "metrics": metrics})
        folder = run_folder(mine, root)
        folder.mkdir(parents=True)
        file = write_entry(mine, folder)
        (folder / "entry.json").write_bytes(file.read_bytes())
    return root, theirs, ours


def test_a_table_against_published(ledger, nsl_repro):
    root, theirs, ours = ledger
    done = nsl_repro("table", "nsl_cifar", "--against", "published", "-o", root)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("CNN")]
    assert f"{np.mean(theirs):.2f} ± " in row and f"(n = {len(theirs)})" in row
    assert f"{np.mean(ours):.2f} ± " in row and "(n = 2)" in row
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}" in row and "differs (p = " in row
    both = np.mean([*theirs, *ours])
    assert f"{both:.2f}" not in done.stdout
    markdown = nsl_repro("table", "--against", "published", "--markdown", "-o", root)
    assert "| CNN | " in markdown.stdout
    assert "your runs beside the published ones" in markdown.stdout


def test_it_needs_runs_of_ones_own(nsl_repro, tmp_path):
    write_entry(load_published(ROOT / "data", **ASKED)[0], tmp_path)
    done = nsl_repro("table", "--against", "published", "-o", tmp_path)
    assert done.returncode == BAD_USAGE and "runs of yours" in done.stderr
    done = nsl_repro("table", "--against", "paper", "-o", tmp_path)
    assert done.returncode == BAD_USAGE and "must be 'published', got 'paper'" in done.stderr


def test_sets_of_runs_are_compared(ledger, nsl_repro):
    root, theirs, ours = ledger
    names = sorted(p.stem for p in (root / "results").glob("*.json"))
    first = names[0].rsplit("__", 2)
    done = nsl_repro("compare", f"{first[0]}__seed?__*", f"{first[0]}__seed7?__*", "-o", root)
    assert done.returncode == 0, done.stderr
    assert f"{len(theirs)} seeds; B is" in done.stdout and ", 2 seeds." in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("test_accuracy")]
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert f"{(low + high) / 2:+,.4g} ± {(high - low) / 2:,.4g}" in row and row.endswith("yes")
    one = nsl_repro("compare", names[0], names[1], "-o", root)
    assert one.returncode == 0 and f"A is {names[0]}, B is {names[1]}." in one.stdout
    before = "nsl_cifar__digits__quick"
    other = nsl_repro("compare", f"{before}__cnn", f"{before}__static_uns")
    assert other.returncode == BAD_USAGE
    assert "A must be runs that differ in the seed only" in other.stderr
    assert entry_name(load_published(root)[0]) == names[0]
