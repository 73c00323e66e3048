"""It runs for as long as one likes: memory stays flat within 2 %, and Python's objects, open files,
threads and temporary files do not grow at all, in one process and through papermill.

The process that is measured is one of its own, which repeats a turn of work and prints what it
holds after each. `NSL_SOAK=1` repeats it for `NSL_SOAK_HOURS` hours (2 unless told otherwise), one
half of them in one process and one half through papermill, and writes every reading to
`NSL_SOAK_LOG`, if that names a file.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

LONG = os.environ.get("NSL_SOAK") == "1"
HOURS = float(os.environ.get("NSL_SOAK_HOURS", "2"))


def held() -> dict[str, int]:
    """What this process holds once everything that can be given back has been: bytes of memory,
    Python objects, open files, threads, files in the temporary folder."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    objects = len(gc.get_objects())
    return dict(
        memory=pages * os.sysconf("SC_PAGE_SIZE"),
        objects=objects,
        files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        temporary=sum(
            len(folders) + len(files) for _, folders, files in os.walk(tempfile.gettempdir())
        ),
    )


IDENTITY = dict(experiment="soak", dataset="digits", method="dynamic_dns", preset="smoke", seed=0)
NETWORK = dict(method="dynamic_dns", width=0.125, in_channels=1, image_size=16)


def train_and_keep(folder, train_set, validation, test_set):
    "A short training with checkpoints and curves, and its network kept."
    import torch

    from nsl_repro.training.classify import train
    from nsl_repro.training.loop import make_accelerator
    from nsl_repro.training.recipe import RECIPES
    from nsl_repro.training.models import cnn9
    from nsl_repro.training.weights import Preprocessing, keep_model

    torch.manual_seed(0)
    model = cnn9(**NETWORK)
    result = train(
        model,
        train_set,
        test_set,
        validation,
        recipe=replace(RECIPES["clean"], batch_size=32),
        steps=4,
        segments=2,
        flip=False,
        accelerator=make_accelerator("cpu", tracker="tensorboard"),
        checkpoint=folder / "checkpoint.pt",
    )
    prepare = Preprocessing.of(train_set.images, "standardised")
    keep_model(folder, model, "cnn9", NETWORK, prepare, train_set.classes)
    return result.metrics, result.curves, result.wall_time_s


def one_process(out: Path):
    """Everything that a run touches, in small: network, training with checkpoints and curves,
    ledger, table, figure, kept model, loaded again."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from nsl_repro import load
    from nsl_repro.data.images import hold_out, limit, load_dataset
    from nsl_repro.results.figures import plot_accuracy
    from nsl_repro.results.ledger import load_ledger
    from nsl_repro.results.tables import comparison_table
    from nsl_repro.results.ledger import recorded_run, run_folder

    train_set, test_set = (limit(part, 128) for part in load_dataset("digits"))
    train_set, validation = hold_out(train_set, 32)

    def turn():
        entry = recorded_run(
            lambda folder: train_and_keep(folder, train_set, validation, test_set),
            out,
            resume=False,
            **IDENTITY,
            parameters=dict(steps=4),
            device="cpu",
        )
        model = load(run_folder(entry, out))
        model(model.preprocess(test_set.images[:8]))
        comparison_table(load_ledger(out)).to_markdown()
        plot_accuracy(load_ledger(out))
        plt.close("all")

    return turn


def through_papermill(out: Path):
    "A whole experiment in a kernel of its own, as the command runs it."
    from nsl_repro.command.runner import run_experiment

    notebook = out / "short.ipynb"
    cells = [
        dict(cell_type="markdown", id="a", metadata={}, source="# Short\n\n> A notebook."),
        dict(
            cell_type="code",
            id="b",
            metadata=dict(tags=["parameters"]),
            source='seed: int = 0  # of the run\noutput: str = ""  # folder',
            outputs=[],
            execution_count=None,
        ),
        dict(
            cell_type="code",
            id="c",
            metadata={},
            source="from nsl_repro.results.ledger import recorded_run\n"
            "recorded_run(lambda folder: (dict(seed=seed), {}, 0.0), output, experiment='short', "
            "dataset='digits', method='none', preset='smoke', seed=seed, parameters={}, "
            "device='cpu')",
            outputs=[],
            execution_count=None,
        ),
    ]
    notebook.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))

    def turn():
        executed = run_experiment(notebook, dict(seed=turn.seed), out / "data")
        executed.unlink()
        executed.with_suffix(".runs").unlink()
        turn.seed += 1

    turn.seed = 0
    return turn


def thirds(readings: list[int]) -> tuple[float, float]:
    "The medians of the last third but one, and of the last third."
    third = max(1, len(readings) // 3)
    return statistics.median(readings[-2 * third : -third]), statistics.median(readings[-third:])


def growth(readings: list[int]) -> float:
    before, after = thirds(readings)
    return after / before - 1 if before else float(after > 0)


def grows(readings: list[int], share: float = 0.0) -> str:
    """What is wrong with readings that should have levelled off: '' if the last third is at most
    this share above the third before."""
    before, after = thirds(readings)
    return (
        f"{before:,.0f} became {after:,.0f} ({after / before - 1:+.1%})"
        if after > before * (1 + share)
        else ""
    )


def soak(kind: str, turns: int, folder: Path, hours: float = 0.0) -> list[dict[str, int]]:
    """Readings after each turn in a process of its own: so many turns, or as many as there is time
    for."""
    temporary, output = folder / "temporary", folder / "output"
    temporary.mkdir()
    output.mkdir()
    env = os.environ | dict(TMPDIR=str(temporary), NSL_PROGRESS="off", MPLBACKEND="agg")
    process = subprocess.Popen(
        [sys.executable, __file__, kind, str(turns), str(hours), str(output)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    readings = [json.loads(line) for line in process.stdout if line.startswith('{"memory"')]
    assert process.wait() == 0 and len(readings) >= turns
    if log := os.environ.get("NSL_SOAK_LOG"):
        with open(log, "a") as file:
            file.writelines(
                json.dumps(dict(kind=kind, turn=n) | reading) + "\n"
                for n, reading in enumerate(readings)
            )
    return readings


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(),
    reason="memory and open files are read from /proc, which is Linux's",
)
@pytest.mark.parametrize(
    ("kind", "warm", "turns"), [("one_process", 4, 12), ("through_papermill", 2, 3)]
)
def test_nothing_grows(kind, warm, turns, tmp_path, measured):
    began = time.monotonic()
    readings = soak(kind, warm + turns, tmp_path, HOURS / 2 if LONG else 0.0)[warm:]
    share = 0.02 if LONG else 0.005  # of memory: a few turns must not come near what hours may
    found = {
        what: grows([r[what] for r in readings], share if what == "memory" else 0.0)
        for what in readings[0]
    }
    measured(
        turns=len(readings),
        minutes=round((time.monotonic() - began) / 60, 1),
        **{f"{what}_growth": growth([r[what] for r in readings]) for what in readings[0]},
    )
    assert not any(found.values()), f"{kind}, after {len(readings)} turns: " + "; ".join(
        f"{what}: {said}" for what, said in found.items() if said
    )


def test_growth_is_seen():
    assert (
        grows([100, 100, 100, 100, 101, 101], 0.02) == ""
        and grows([5] * 9) == ""
        and grows([1] * 6 + [0] * 3) == ""
    )
    assert (
        grows([100, 100, 100, 100, 103, 103], 0.02) and grows([5, 6, 7]) and grows([5] * 7 + [6, 6])
    )
    assert grows([9, 9, 9, 1, 1, 1], 0.02) == ""


if __name__ == "__main__":
    kind, turns, hours, output = sys.argv[1:]
    turn, end, done = globals()[kind](Path(output)), time.monotonic() + 3600 * float(hours), 0
    while done < int(turns) or time.monotonic() < end:
        turn()
        done += 1
        print(json.dumps(held()), flush=True)
