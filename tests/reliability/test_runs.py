"""A run may be killed at any moment, without a chance to clean up. Begun again, it ends in the same
bits as one that was left alone."""

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import COMMAND, ROOT
from victim import LOOPS, SOAK, outcome, record, start

MOMENTS = (
    dict(classifier=280, embedder=70, learner=70, photographer=80)
    if SOAK
    else dict(classifier=32, embedder=7, learner=7, photographer=4)
)
BY_TIMER = (
    0.2  # the share of the moments that are chosen by a clock instead of a point of the program
)


def run(root, loop, die_at=0, after=None, **options):
    "One process: its exit status, -9 if it was killed."
    process = start(record, root, loop, root, die_at, **options)
    if after is not None:
        process.join(after)
        process.kill()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "What each loop leaves when nobody disturbs it, the points it passes, and its seconds."
    found = {}
    for loop in LOOPS:
        root, began = tmp_path_factory.mktemp(loop), time.perf_counter()
        assert run(root, loop) == 0, (root / "errors").read_text()
        found[loop] = (
            outcome(root),
            (root / "points").read_text().splitlines(),
            time.perf_counter() - began,
        )
    return found


def leftovers(root):
    return [p for p in root.rglob("*") if p.name.endswith((".part", ".refused"))]


@pytest.mark.parametrize("loop", LOOPS)
def test_killed_anywhere_it_ends_in_the_same_bits(loop, undisturbed, tmp_path, measured):
    wanted, passed, seconds = undisturbed[loop]
    draw, n = random.Random(loop), MOMENTS[loop]
    timed = round(n * BY_TIMER)
    first = [
        passed.index(kind) + 1 for kind in dict.fromkeys(passed)
    ]  # every kind of point, then any
    moments = (
        draw.sample(first, len(first)) + draw.sample(range(1, len(passed) + 1), len(passed)) * 9
    )[: n - timed]

    def disturbed(number):
        root = tmp_path / str(number)
        if number < len(moments):
            assert run(root, loop, moments[number]) == -9, (root / "errors").read_text()
        else:
            run(root, loop, after=draw.uniform(0.02, 0.9 * seconds))
        assert (
            not list(root.glob("results/[!.]*")) or outcome(root) == wanted
        )  # killed: nothing in the ledger, or all of it
        assert run(root, loop) == 0, (root / "errors").read_text()
        assert outcome(root) == wanted, (
            f"{passed[moments[number] - 1]} was point {moments[number]}"
            if number < len(moments)
            else "by timer"
        )
        assert not leftovers(root)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(disturbed, range(n)))
    measured(kills=n, by_clock=timed, points=len(passed), kinds=len(set(passed)))


def test_killed_again_and_again(undisturbed, tmp_path, measured):
    wanted, passed, _ = undisturbed["classifier"]
    draw, kills = random.Random(1), 0
    while (status := run(tmp_path, "classifier", draw.randrange(1, len(passed)))) != 0:
        assert status == -9, (tmp_path / "errors").read_text()
        kills += 1
        assert len(leftovers(tmp_path)) <= 4  # one a file at most, however often
    assert outcome(tmp_path) == wanted and not leftovers(tmp_path)
    measured(kills=kills)


DAMAGE = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one bit flipped": lambda data: data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:],
    "of another schema": lambda data: data.replace(b"checkpoint 1 ", b"checkpoint 2 ", 1),
    "something else": lambda data: b"<html>404</html>",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(
    how, undisturbed, tmp_path, measured
):
    wanted, passed, _ = undisturbed["classifier"]
    assert (
        run(
            tmp_path,
            "classifier",
            [n for n, kind in enumerate(passed, 1) if kind == "after save_checkpoint"][1],
        )
        == -9
    )
    (checkpoint,) = tmp_path.glob("runs/*/checkpoint.pt")
    checkpoint.write_bytes(DAMAGE[how](checkpoint.read_bytes()))
    assert run(tmp_path, "classifier") == 0
    said = (tmp_path / "errors").read_text()
    assert (
        said.startswith(str(checkpoint))
        and len(said.splitlines()) == 1
        and "checkpoint.pt.refused, and the run goes on from the checkpoint before it" in said
    )
    steps = (tmp_path / "points").read_text().splitlines().count("before step")
    assert outcome(tmp_path) == wanted and steps == 4, (
        f"{steps} of the 4 steps behind the first checkpoint were done"
    )
    measured(steps_done_again=steps)


SWEEP = """
import time
from pathlib import Path
from nsl_repro.results.ledger import recorded_run

def run(seed):
    def work(folder):
        for step in range(len(list(folder.glob("step*"))), 4):
            time.sleep(0.1)
            (folder / f"step{step}").touch()
        with open(Path(output) / "log", "a") as log:
            log.write(f"{seed}\\n")
        return {"test_accuracy": 50.0}, {}, 1.0

    identity = dict(experiment="sweep", dataset="digits", method="m", preset="smoke", seed=seed)
    return recorded_run(work, output, parameters={}, device="cpu", **identity)

print([run(seed).seed for seed in seeds])
"""


def kill_soon(command, begun, seconds):
    "Begin a command, and kill it some seconds after it has begun its work."
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runner = subprocess.Popen(command, cwd=ROOT, **quiet)
    deadline = time.monotonic() + 60
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    runner.kill()
    runner.wait()


def test_a_sweep_that_is_killed_does_only_what_is_missing(notebook, tmp_path, measured):
    sweep = notebook("sweep", "seeds: list[int] = [0, 1, 2, 3]\noutput: str = ''", SWEEP)
    draw, command = random.Random(0), [*COMMAND, "run", str(sweep), "-o", str(tmp_path)]
    kills = 20 if SOAK else 2
    for _ in range(kills):
        kill_soon(command, lambda: [*tmp_path.glob("runs/sweep__*/step*")], draw.uniform(0, 1))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("[0, 1, 2, 3]\n\nsweep on digits"), done.stderr
    log = (tmp_path / "log").read_text().split()
    assert set(log) == set("0123")
    # twice only if killed between its end and the note of it
    assert len(log) <= 5, f"work was finished {len(log)} times for 4 runs"
    assert len(list(tmp_path.glob("runs/*/entry.json"))) == 4 and not leftovers(tmp_path)
    measured(kills=kills, runs=4, completions=len(log))
    for executed in tmp_path.glob("runs/*.ipynb"):  # killed or not, what is there is whole
        assert executed.read_text().rstrip("\n").endswith("}")
