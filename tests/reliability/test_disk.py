"""A disk that is full, read-only, somebody else's or gone: the run stops with one sentence and exit
status 5, and what was written before stays whole."""

import json
import os
import resource
import shutil
import subprocess

import pytest
from conftest import new_interpreter
from PIL import Image
from typer.testing import CliRunner
from victim import LOOPS, outcome, record, start

from nsl_repro.command import cli
from nsl_repro.data.sources import DataNotFound
from nsl_repro.base.files import CannotWrite, write_whole
from nsl_repro.data.photos import photos_from_folder
from nsl_repro.results.ledger import load_ledger
from nsl_repro.training.loop import load_checkpoint


@pytest.fixture
def nsl_repro():
    "Nothing is spared here: what is started is what is tested."
    return new_interpreter


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 3 MB in memory; where we may not mount one, the test is skipped."
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place],
            capture_output=True,
            text=True,
        )
        if shutil.which("mount")
        else None
    )
    if not mounted or mounted.returncode:
        reason = mounted.stderr.strip() if mounted else "there is no mount"
        pytest.skip(f"only root can mount a small disk to fill: {reason}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place):
    "Write until nothing more fits."
    with open(place / "filler", "ab", buffering=0) as filler:
        size = 1 << 16
        while size:
            try:
                filler.write(b"x" * size)
            except OSError:
                size //= 2


def full_disk_during(loop, root, place, at, **options):
    record(loop, root, on_step=lambda done: done == at and fill(place), **options)


def limited(loop, root, size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    record(loop, root)


def vanishing(loop, root, at):
    record(loop, root, on_step=lambda done: done == at and shutil.rmtree(root / "runs"))


def unprivileged(loop, root):
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    record(loop, root)


def stopped(work, errors, *args):
    "The last line of the error stream of a run that ends with status 5."
    process = start(work, errors, *args)
    process.join(60)
    said = (errors / "errors").read_text()
    assert process.exitcode == 5, said
    return said.splitlines()[-1]


def assert_whole(root):
    for file in root.rglob("*"):
        assert not file.name.endswith((".part", ".tmp")), file
        if file.name.startswith("checkpoint.pt"):
            load_checkpoint(file)
        elif file.suffix in (".json", ".ipynb"):
            json.loads(file.read_text())


def test_a_disk_that_fills_up_during_training(small_disk, tmp_path):
    said = stopped(full_disk_during, tmp_path / "first", "classifier", small_disk, small_disk, 5)
    assert said.startswith(f"CannotWrite: {small_disk}/runs/victim__") and said.endswith(
        " cannot be written: No space left on device"
    )
    assert_whole(small_disk)
    assert (
        max(load_checkpoint(file)["done"] for file in small_disk.glob("runs/*/checkpoint.pt*")) >= 4
    )
    (small_disk / "filler").unlink()  # somebody makes room
    for root in (small_disk, tmp_path / "other"):
        process = start(record, tmp_path / "again", "classifier", root)
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "again" / "errors").read_text()
    assert outcome(small_disk) == outcome(tmp_path / "other")


def test_a_file_that_may_not_grow(tmp_path):
    said = stopped(limited, tmp_path / "errors", "classifier", tmp_path / "out", 20_000)
    assert said.startswith(f"CannotWrite: {tmp_path}/out/") and said.endswith(
        "cannot be written: File too large"
    )
    assert_whole(tmp_path / "out")
    assert load_ledger(tmp_path / "out") == []


def test_a_folder_that_vanishes_during_training(tmp_path):
    said = stopped(vanishing, tmp_path / "errors", "classifier", tmp_path / "out", 3)
    assert said.startswith("CannotWrite: ") and said.endswith(
        "checkpoint.pt cannot be written: No such file or directory"
    )
    assert [
        p.name for p in (tmp_path / "out").iterdir()
    ] == []  # nothing is made anew where somebody has removed it


@pytest.mark.parametrize("loop", LOOPS)
def test_a_folder_of_somebody_else(loop, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest keeps its folders for their owner
        folder.chmod(0o755)
    said = stopped(unprivileged, tmp_path / "errors", loop, out)
    assert said.startswith(f"CannotWrite: {out}/runs/victim__") and said.endswith(
        " cannot be written: Permission denied"
    )
    assert list(out.iterdir()) == []


def test_the_command_on_a_disk_that_fills_up(nsl_repro, notebook, small_disk):
    cells = [
        "n: int = 0\noutput: str = ''",
        "from pathlib import Path\nfrom nsl_repro.base.files import "
        "write_whole\nwrite_whole(Path(output) / 'before.json', '{}')",
        "with open(Path(output) / 'filler', 'wb', buffering=0) as f:\n    try:\n        while "
        "f.write(bytes(4096)): pass\n    except OSError: pass\n    print('full')",
        "write_whole(Path(output) / 'result.json', '[' + '1, ' * 10_000 + '1]')",
    ]
    done = nsl_repro("run", notebook("greedy", *cells), "-o", small_disk)
    assert done.returncode == 5, done.stderr
    assert (
        len(done.stderr.strip().splitlines()) == 1
        and done.stderr.startswith(f"nsl-repro: {small_disk}/")
        and "cannot be written: No space left on device" in done.stderr
    )
    assert sorted(p.name for p in small_disk.iterdir()) == ["before.json", "filler", "runs"]
    assert_whole(small_disk)


def test_the_command_on_a_read_only_disk(notebook, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    result = CliRunner().invoke(
        cli.app,
        ["run", str(notebook("toy", "x: int = 0", "print('it started')")), "-o", str(small_disk)],
    )
    assert (result.exit_code, result.stdout, result.stderr) == (
        5,
        "",
        f"nsl-repro: {small_disk}/runs: Read-only file system\n",
    )


def test_photographs_that_vanish_during_the_run(tmp_path):
    "The command makes exit status 3 of this exception: see test_runner.py."
    for name in (f"{c}/{i}.png" for c in "ab" for i in range(2)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    photos = photos_from_folder(tmp_path / "photos")
    assert photos.image(3).size == (8, 8)
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(DataNotFound, match="photos/b/1.png"):
        photos.image(3)


def test_half_a_file_never_has_its_final_name(small_disk, measured):
    "Every size of file around the size that still fits."
    fill(small_disk)
    with open(small_disk / "filler", "r+b") as filler:
        filler.truncate(filler.seek(0, 2) - 40_000)
    old, outcomes = write_whole(small_disk / "file", "old"), []
    for size in range(1000, 60_000, 1000):
        try:
            write_whole(old, bytes(size))
            assert old.read_bytes() == bytes(size)
            write_whole(old, "old")
            outcomes.append("new")
        except CannotWrite:
            assert old.read_text() == "old"
            outcomes.append("old")
        assert {p.name for p in small_disk.iterdir()} == {"file", "filler"}
    assert set(outcomes) == {"old", "new"}
    measured(sizes=len(outcomes), did_not_fit=outcomes.count("old"))
