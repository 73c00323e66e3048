"""The same seed, the same machine, the same number of threads: the same ledger entry and weights,
bit for bit. What cannot promise that says so in its entry."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from victim import HERE, LOOPS, SOAK, TIMINGS, outcome

from nsl_repro.results.ledger import load_ledger, read_entry, recorded_run, write_entry

FRESH = """
import os, sys, victim
for loop in victim.LOOPS:
    workers = {'workers': int(sys.argv[2])} if loop == 'photographer' else {}
    if not (child := os.fork()):
        victim.record(loop, f'{sys.argv[1]}/{loop}', **workers)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, loop
"""


@pytest.fixture(scope="module")
def two_interpreters(tmp_path_factory):
    """All loops in each of two fresh interpreters, which have nothing in common but the machine.
    The second one's loader reads its images in other processes."""
    roots = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "PYTHONHASHSEED": "random",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FRESH, str(root), str(2 * n)],
            env=env,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, root in enumerate(roots)
    ]
    for process in started:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors
    return roots


@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_seed_gives_the_same_bits(loop, two_interpreters):
    one, two = (outcome(root / loop) for root in two_interpreters)
    assert one == two and one[0]["metrics"] and one[0]["curves"]


EXPERIMENTS = [
    ("nsl_cifar", "cnn,static_uns,dynamic_dns"),
    ("pddm_retrieval", "pddm_quadruplet,triplet"),
    ("pddm_ablation", "pddm_found,triplet"),
    ("nsl_fewshot", "protonet,static_dns"),
    ("nsl_imagenet", "static_dns"),
]


@pytest.mark.skipif(
    not SOAK,
    reason="half a minute an experiment: the loops above are the same code; make soak does it",
)
@pytest.mark.parametrize("experiment, methods", EXPERIMENTS)
def test_the_same_command_gives_the_same_ledger(experiment, methods, nsl_repro, tmp_path):
    found = []
    for root in (tmp_path / "one", tmp_path / "two"):
        done = nsl_repro(
            "run",
            experiment,
            "-p",
            "preset=smoke",
            "-p",
            f"methods={methods}",
            "-o",
            root,
            timeout=900,
            OMP_NUM_THREADS="1",
        )
        assert done.returncode == 0, done.stderr
        entries = [e.model_dump() for e in load_ledger(root)]
        for entry in entries:
            del entry["wall_time_s"]
            entry["metrics"] = {
                k: v
                for k, v in entry["metrics"].items()
                if k not in TIMINGS and not k.endswith(("_ms", "_exponent", "_share"))
            }
            entry["curves"] = {k: v for k, v in entry["curves"].items() if not k.endswith("_ms")}
        found.append(entries)
    assert found[0] == found[1] and len(found[0]) >= methods.count(",") + 1


IDENTITY = dict(
    experiment="toy",
    dataset="digits",
    method="cnn",
    preset="smoke",
    seed=0,
    parameters={},
    device="cpu",
)


def test_an_operator_that_is_not_deterministic_is_recorded(tmp_path):
    def work(folder):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
        torch.ones(3).cumsum(0)
        return {"test_accuracy": 50.0}, {}, 1.0

    entry = recorded_run(work, tmp_path, **IDENTITY)
    assert entry.nondeterministic == ["put_"]
    (file,) = tmp_path.glob("runs/*/entry.json")
    assert json.loads(file.read_text())["nondeterministic"] == ["put_"]
    assert (
        recorded_run(work, tmp_path / "fast", deterministic=False, **IDENTITY).nondeterministic
        == []
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_was_recorded_before_reads_and_writes_as_it_was(tmp_path):
    for file in sorted((ROOT / "data" / "results").glob("*.json"))[:: 1 if SOAK else 10]:
        entry = read_entry(file)
        assert entry.nondeterministic == []
        assert write_entry(entry, tmp_path).read_bytes() == file.read_bytes()


def test_no_loop_uses_such_an_operator_on_a_cpu(two_interpreters):
    assert all(
        "nondeterministic" not in outcome(root / loop)[0]
        for root in two_interpreters
        for loop in LOOPS
    )
