"""Photographs of one's own, as a user would: a folder with good and bad files, through the command
and through a DataLoader."""

import colorsys
import shutil
import warnings

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from nsl_repro.results.ledger import load_ledger
from nsl_repro.command.cli import FAILED, NO_DATA


def make(folder, classes=16, each=8):
    "A folder of invented photographs, one hue per class."
    draws = np.random.default_rng(0)
    for c in range(classes):
        color = 255 * np.array(colorsys.hsv_to_rgb(c / classes, 0.8, 0.8))
        (folder / f"kind {c:02}").mkdir(parents=True)
        for i in range(each):
            noise = draws.normal(0, 40, (36, 48, 1)) + color
            image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
            image.save(folder / f"kind {c:02}" / f"{i}.jpg")
    return folder


def spoil(folder):
    "What lies in real folders: an empty class, empty, truncated and foreign files."
    (folder / "nothing yet").mkdir()
    (folder / "kind 00" / "empty.jpg").touch()
    (folder / "kind 01" / "list.xlsx").write_text("prices")
    whole = (folder / "kind 02" / "1.jpg").read_bytes()
    (folder / "kind 02" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def everything(folder):
    return sorted((p.relative_to(folder), p.stat().st_size) for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make(tmp_path_factory.mktemp("own") / "cub")  # named as a published set


def asked(name, folder, *more):
    return [
        "run",
        name,
        "-p",
        "preset=smoke",
        "-p",
        "dataset=folder",
        "-p",
        f"data_root={folder}",
    ] + [word for value in more for word in ("-p", value)]


METHODS = {
    "pddm_retrieval": "frozen,pddm_quadruplet",
    "pddm_transfer": "frozen,triplet",
    "nsl_fewshot": "finetune_head,static_dns",
    "nsl_adapt": "linear_probe,static_dns",
}


@pytest.mark.parametrize("name", METHODS)
def test_an_experiment_takes_a_folder(name, photos, nsl_repro, tmp_path):
    before = everything(photos)
    where = dict(OMP_NUM_THREADS="1", NSL_DATA=str(tmp_path / "sets"))
    more = ["way=3"] if name == "nsl_fewshot" else []
    typed = asked(name, photos, f"methods={METHODS[name]}", *more)
    done = nsl_repro(*typed, "-o", tmp_path / "out", **where)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    entries = load_ledger(tmp_path / "out")
    (dataset,) = {e.dataset for e in entries}
    assert dataset.startswith("folder_cub_") and len(dataset) == len("folder_cub_") + 8
    assert len({e.data for e in entries}) == 1 and all(e.data for e in entries)
    assert {e.method for e in entries if e.experiment == name} == set(METHODS[name].split(","))
    seeds = {e.parameters.get("split_seed") for e in entries if e.experiment == name}
    assert seeds == ({None} if name == "nsl_adapt" else {0})
    assert everything(photos) == before  # nothing is written into it
    told = nsl_repro("table", name, "--dataset", dataset, "-o", tmp_path / "out")
    assert told.returncode == 0 and "-p dataset=folder" in told.stdout + done.stdout
    assert "-p data_root=FOLDER" in told.stdout


def test_bad_files_stop_a_run_or_are_left_out(photos, nsl_repro, tmp_path):
    folder = spoil(shutil.copytree(photos, tmp_path / "photos"))
    where = dict(OMP_NUM_THREADS="1", NSL_DATA=str(tmp_path / "sets"), cwd=tmp_path)
    typed = asked("pddm_retrieval", "photos", "methods=frozen,triplet")
    done = nsl_repro(*typed, **where)
    assert done.returncode == NO_DATA, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nsl-repro: ")]
    assert "1 files are not images, the first is kind 01/list.xlsx" in line
    assert line.endswith("repair it, or pass -p on_error=skip to go on without.")
    done = nsl_repro(*typed, "-p", "on_error=skip", **where)
    assert done.returncode == 0, done.stderr[-2000:]
    for told in ("folders have no images, the first is nothing yet", "2 of 130 images are damaged"):
        assert told in done.stderr + done.stdout
    entry = load_ledger(tmp_path / "data", experiment="pddm_retrieval")[0]
    assert entry.dataset.startswith("folder_photos_") and entry.parameters["classes_used"] == 12
    (folder / "kind 00" / "one_more.jpg").write_bytes((folder / "kind 00" / "1.jpg").read_bytes())
    again = nsl_repro(*typed, "-p", "on_error=skip", **where)
    assert again.returncode == 0, again.stderr[-2000:]
    names = {e.dataset for e in load_ledger(tmp_path / "data")}
    assert len(names) == 2  # other photographs


@pytest.mark.parametrize(
    "root, said",
    [
        ("", "got none: pass -p data_root=FOLDER."),
        ("nowhere", "got nowhere, which is no folder."),
        ("cub/kind 00", "in which there are no folders."),
    ],
)
def test_no_folder(root, said, photos, nsl_repro):
    done = nsl_repro(*asked("nsl_adapt", root), cwd=photos.parent)
    assert done.returncode == NO_DATA
    (line,) = done.stderr.strip().splitlines()
    assert "data_root must be the folder of your photographs" in line and line.endswith(said)


def test_too_few_classes(nsl_repro, tmp_path):
    folder = make(tmp_path / "few", classes=5)
    done = nsl_repro(*asked("pddm_retrieval", folder), "-o", tmp_path / "out")
    assert done.returncode == FAILED
    assert "at least 8 to be divided into parts of at least 4 + 4, got 5." in done.stderr


def test_switches_are_the_experiments(nsl_repro, tmp_path):
    "An error of the library that advises an argument advises the switch, if there is one."
    sets = tmp_path / "imagenet"
    for part in ("train", "val"):
        make(sets / part, classes=3, each=3)
    (sets / "train" / "kind 00" / "notes.txt").touch()
    words = ["-p", "preset=smoke", "-p", "dataset=imagenet", "-p", f"data_root={tmp_path}"]
    for name, end in (
        ("nsl_imagenet", "repair it."),
        ("pddm_transfer", "repair it, or pass -p on_error=skip to go on without."),
    ):
        done = nsl_repro("run", name, *words, "-o", tmp_path / "out", OMP_NUM_THREADS="1")
        assert done.returncode == NO_DATA, done.stderr[-2000:]
        assert end in [line[-len(end) :] for line in done.stderr.splitlines()], done.stderr
    shutil.rmtree(sets / "val")
    done = nsl_repro("run", "nsl_imagenet", *words, "-o", tmp_path / "out", OMP_NUM_THREADS="1")
    assert done.returncode == NO_DATA and "val missing: put its images in" in done.stderr
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert "`imagenet/train/` and `imagenet/val/`" in readme


def test_a_loader_takes_them(photos, tmp_path):
    "Workers, a sampler of pytorch-metric-learning and transforms; bad files are left out before."
    import torch
    from pytorch_metric_learning.samplers import MPerClassSampler
    from torchvision import transforms

    from nsl_repro import photos_from_folder

    folder = spoil(shutil.copytree(photos, tmp_path / "photos"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = photos_from_folder(folder, on_error="skip", decode=True)
    assert len(ours) == 128 and len(ours.skipped) == 3 == len(seen)
    ours = ours.transformed(transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()]))
    sampler = MPerClassSampler(ours.targets, m=4, batch_size=16, length_before_new_iter=64)
    loader = torch.utils.data.DataLoader(ours, batch_size=16, sampler=sampler, num_workers=2)
    batches = list(loader)
    assert [tuple(x.shape) for x, _ in batches] == 4 * [(16, 3, 8, 8)]
    assert all(labels.bincount().max() == 4 for _, labels in batches)
