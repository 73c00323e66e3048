"""Corrupt data is found before training, with the file's name; and nothing outside of the data root
is ever written."""

import ast
import functools
import io
import json
import os
import re
import shutil
import stat
import struct
import tarfile
import threading
import warnings
import zipfile
import zlib
from dataclasses import replace
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from nsl_repro.data import sources as catalogue
from nsl_repro.base.downloads import DownloadFailed, download
from nsl_repro.data.sources import DataNotFound, check_files, fetch_data
from nsl_repro.training.embedding import photo_tensor
from nsl_repro.data.features import frozen_features
from nsl_repro.training.fewshot import image_set
from nsl_repro.data.splits import decoded, load_splits
from nsl_repro.training.sweep import PRESETS, sweep
from nsl_repro.results.ledger import entry_name, run_folder
from nsl_repro.data.inventory import data_state
from nsl_repro.data.photos import (
    DamagedData,
    Noticed,
    check_disjoint,
    check_photos,
    load_photos,
    photo_faults,
    photos_from_folder,
    photos_from_parts,
    read_image,
)
from nsl_repro.command.runner import prepare

CLASSES, EACH = 12, 8


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "Small copies of CUB's layout and of folders of classes, both whole."
    root = tmp_path_factory.mktemp("published")
    noise = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, 32, 32, 3), np.uint8)
    rows = [
        (f"{c + 1:03}.Bird_{c + 1}/{k}.jpg", c + 1) for c in range(CLASSES) for k in range(EACH)
    ]
    for pixels, (file, c) in zip(noise, rows):
        for folder in (
            root / "CUB_200_2011" / "images",
            root / "mini-imagenet" / ("train" if c <= 8 else "val" if c <= 10 else "test"),
        ):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / file)
    write = lambda name, lines: (root / "CUB_200_2011" / name).write_text(
        "".join(f"{i} {line}\n" for i, line in enumerate(lines, 1))
    )
    write("classes.txt", [f"{c:03}.Bird_{c}" for c in range(1, CLASSES + 1)])
    write("images.txt", [file for file, _ in rows])
    write("image_class_labels.txt", [c for _, c in rows])
    write("bounding_boxes.txt", ["2.0 1.0 20.0 20.0" for _ in rows])
    return root


@pytest.fixture
def root(published, tmp_path):
    return shutil.copytree(published, tmp_path / "data")


def victim(root, folder="CUB_200_2011/images"):
    return root / folder / "001.Bird_1" / "3.jpg"


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def html(path):
    path.write_text("<html>404 not found</html>")


def bomb(path):
    "100 kB that declare an image of 40 gigabytes."
    chunk = lambda kind, data: (
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    side = (115_000).to_bytes(4, "big")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
        + chunk(b"IDAT", zlib.compress(bytes(10**8)))
        + chunk(b"IEND", b"")
    )


def program(path):
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file\n"
    )


def empty(path):
    path.write_bytes(b"")


LEVELS = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # become 0 to 255


def tiff(values, bits, photometric):
    "A grey TIFF as other programs write it: `bits` per pixel, 0 black (1) or white (0)."
    if bits == 12:  # two pixels in three bytes
        a, b = (values.reshape(-1, 2) >> 4).T.astype(np.int64)
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    return head + data + len(tags).to_bytes(2, "little") + entries + bytes(4)


GREY = {
    "a PNG": lambda path: Image.fromarray(LEVELS).save(path, "PNG"),
    "a TIFF": lambda path: Image.fromarray(LEVELS).save(path, "TIFF"),
    "a big-endian TIFF": lambda path: Image.fromarray(LEVELS.astype(">u2")).save(path, "TIFF"),
    "a TIFF by another program": lambda path: path.write_bytes(tiff(LEVELS, 16, 1)),
    "a TIFF where 0 is white": lambda path: path.write_bytes(tiff(65535 - LEVELS, 16, 0)),
    "a TIFF of 12 bits": lambda path: path.write_bytes(tiff(LEVELS, 12, 1)),
    "a PGM": lambda path: path.write_bytes(b"P5 16 16 65535\n" + LEVELS.astype(">u2").tobytes()),
    "a PGM of 12 bits": lambda path: path.write_bytes(
        b"P5 16 16 4095\n" + (LEVELS // 16).astype(">u2").tobytes()
    ),
}


@pytest.mark.parametrize("what", GREY)
def test_more_than_eight_bits(what, tmp_path):
    "Grey of 12 and 16 bits goes from black to white, level by level."
    GREY[what](tmp_path / "grey.png")
    grey = np.asarray(read_image(tmp_path / "grey.png"))
    assert grey.shape == (16, 16, 3)
    np.testing.assert_array_equal(grey, np.arange(256).reshape(16, 16, 1).repeat(3, 2))


TRANSPARENT = {  # each has a red pixel on its left and a transparent one on its right
    "RGBA": lambda: Image.fromarray(np.array([[[255, 0, 0, 255], [9, 9, 9, 0]]], np.uint8)),
    "RGB, one color": lambda: Image.fromarray(np.array([[[255, 0, 0], [9, 9, 9]]], np.uint8)),
    "a palette": lambda: TRANSPARENT["RGB, one color"]().quantize(2),
    "LA": lambda: Image.fromarray(np.array([[[76, 255], [9, 0]]], np.uint8), "LA"),
    "L, one grey": lambda: Image.fromarray(np.array([[76, 9]], np.uint8)),
    "16 bits, one grey": lambda: Image.fromarray(np.array([[76 * 257, 9]], np.uint16)),
}


@pytest.mark.parametrize("what", TRANSPARENT)
def test_transparency(what, tmp_path):
    "What is transparent shows the white ground, and not the color that hides under it."
    image = TRANSPARENT[what]()
    hidden = image.getpixel((1, 0))
    more = {} if image.mode in ("RGBA", "LA") else {"transparency": hidden}
    image.save(tmp_path / "a.png", **more)
    left, right = np.asarray(read_image(tmp_path / "a.png"))[0].tolist()
    assert left in ([255, 0, 0], [76, 76, 76]) and right == [255, 255, 255]


def test_numbers_without_black_and_white(tmp_path):
    "Pixels of 32 bits, of floating point or in Lab are refused, with the file's name."
    path = tmp_path / "a.tif"
    for mode in ("I", "F", "LAB"):
        Image.new(mode, (4, 4), 1 if mode != "LAB" else 0).save(path)
        with pytest.raises(DamagedData, match=f"{path} cannot be decoded .*got mode {mode}"):
            read_image(path)
    signed = bytearray(tiff(LEVELS, 16, 1))
    count = int.from_bytes(signed[4:8], "little")
    signed[count : count + 2] = (10).to_bytes(2, "little")
    signed[-4:] = struct.pack("<HHII", 339, 3, 1, 2) + bytes(4)  # SampleFormat: signed
    path.write_bytes(signed)
    with pytest.raises(DamagedData, match="got mode I"):
        read_image(path)


def test_every_mode_that_can_be_opened(tmp_path):
    "An image of any mode is opened with its meaning, or refused; none becomes one flat color."
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    seen = set()
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"):
        image = Image.fromarray(LEVELS) if mode == "I;16" else ramp.convert(mode)
        for kind in ("png", "tiff", "bmp", "webp", "gif", "jpeg", "ppm"):
            path = tmp_path / f"a.{kind}"
            try:
                image.save(path, kind)
            except (OSError, KeyError, ValueError):
                continue  # the format has no such mode
            there = Image.open(path).mode
            if there in ("I", "F") or (mode == "I;16" and there != mode):
                continue  # refused, see above; or clipped when it was saved
            seen.add((mode, kind))
            grey = np.asarray(read_image(path)).mean(2).astype(int)
            assert abs(grey[0, 0] - 0) < 16 and abs(grey[-1, -1] - 255) < 16, (mode, kind)
            assert mode == "1" or abs(grey[8, 0] - 128) < 16, (mode, kind)
    assert len(seen) > 30


# How an experiment reads the pixels of photographs, before its first step of training
READERS = {
    "pddm_retrieval, pddm_transfer": lambda photos, tmp: frozen_features(
        photos, "pixels", 8, cache=tmp / "cache"
    ),
    "pddm_retrieval end to end, nsl_adapt": lambda photos, tmp: photo_tensor(photos, 8),
    "nsl_fewshot": lambda photos, tmp: image_set(photos, 8),
    "nsl_imagenet, quick and small": lambda photos, tmp: decoded(photos),
    "whoever asks": lambda photos, tmp: check_photos(photos),
}


@pytest.mark.parametrize("damage", [cut, html, bomb, program, empty])
def test_damaged_images(damage, root, tmp_path):
    path = victim(root)
    damage(path)
    photos = load_photos("cub", root)
    for name, read in READERS.items():
        with pytest.raises(DamagedData, match=f"{path} cannot be decoded") as told:
            read(photos, tmp_path)
        assert str(told.value).count("\n") == 0, name
    _, _, faults = photo_faults("cub", root)
    assert len(faults) == 1 and str(path) in faults[0]


def test_images_that_are_read_while_training(root, tmp_path):
    """nsl_imagenet leaves the photographs on the disk where they are many: all are decoded once
    before it begins."""
    path = victim(root, "mini-imagenet/train")
    cut(path)
    plan = replace(PRESETS["smoke"], classes=0)
    assert not plan.cache and not PRESETS["paper"].cache
    with pytest.raises(DamagedData, match=f"are damaged: the image {path} cannot be decoded"):
        sweep(
            "mini_imagenet",
            methods=["cnn"],
            plan=plan,
            device="cpu",
            root=root,
            output=tmp_path / "out",
        )
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left <= {".lock", "data.txt"}  # the fingerprint of what it was asked for


def test_an_experiment_stops_before_training(root, tmp_path, nsl_repro):
    cut(victim(root))
    done = nsl_repro(
        "run",
        "pddm_retrieval",
        "-p",
        "dataset=cub",
        "-p",
        "preset=smoke",
        "-p",
        f"data_root={root}",
        "-o",
        tmp_path / "out",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 3 and f"{victim(root)} cannot be decoded" in done.stderr, done.stderr
    assert [p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()] == [
        ".ipynb"
    ]  # no entry, no checkpoint


def lines(name, change):
    "A damage to one of CUB's lists."
    return lambda root: (root / "CUB_200_2011" / name).write_bytes(
        change((root / "CUB_200_2011" / name).read_bytes())
    )


def linked(root):
    victim(root).unlink()
    victim(root).symlink_to("/etc/passwd")


LISTS = {  # damage -> what is said
    "a row of labels is missing": (
        lines("image_class_labels.txt", lambda b: b.replace(b"\n7 1\n", b"\n")),
        "1 image ids are not in all of .*, the first is 7, which is not in image_class_labels.txt",
    ),
    "the labels end early": (
        lines("image_class_labels.txt", lambda b: b[: b.index(b"\n90 ") + 1]),
        "image ids are not in all of .* which is not in image_class_labels.txt",
    ),
    "the list of boxes is cut in a row": (
        lines("bounding_boxes.txt", lambda b: b[:-9]),
        r"bounding_boxes.txt, line 96: there must be 5 numbers",
    ),
    "a row names a file that is not there": (
        lambda root: victim(root).unlink(),
        "1 of 96 images are missing, the first is images/001.Bird_1/3.jpg",
    ),
    "a row is there twice": (
        lines("images.txt", lambda b: b + b.splitlines(True)[0]),
        "images.txt, line 97: the id 1 occurs twice",
    ),
    "an image is there twice": (
        lines("images.txt", lambda b: b.replace(b"001.Bird_1/4.jpg", b"001.Bird_1/3.jpg")),
        "1 of 96 rows name an image that was named before, the first is images/001.Bird_1/3.jpg",
    ),
    "a path leads upwards": (
        lines("images.txt", lambda b: b.replace(b"001.Bird_1/3.jpg", b"../../../secret.jpg")),
        "1 of 96 images lie outside of the folder, the first is images/../../../secret.jpg",
    ),
    "a path is absolute": (
        lines("images.txt", lambda b: b.replace(b"001.Bird_1/3.jpg", b"/etc/passwd")),
        "1 of 96 images lie outside of the folder, the first is /etc/passwd",
    ),
    "a file is a link out of the folder": (
        linked,
        "1 of 96 images lie outside of the folder, the first is images/001.Bird_1/3.jpg",
    ),
    "a file is a folder": (
        lambda root: (victim(root).unlink(), victim(root).mkdir()),
        "1 of 96 images are missing, the first is images/001.Bird_1/3.jpg",
    ),
    "a file is a pipe": (
        lambda root: (victim(root).unlink(), os.mkfifo(victim(root))),
        "1 of 96 images are missing, the first is images/001.Bird_1/3.jpg",
    ),
    "a class is not known": (
        lines("classes.txt", lambda b: b.replace(b"1 001.Bird_1\n", b"")),
        "8 images have a class that is not in classes.txt",
    ),
    "a name is not UTF-8": (
        lines("images.txt", lambda b: b.replace(b"001.Bird_1/3.jpg", b"001.Bird_1/\xff.jpg")),
        "1 of 96 images are missing, the first is images/001.Bird_1/\ufffd.jpg",
    ),
    "a list is missing": (
        lambda root: (root / "CUB_200_2011" / "images.txt").unlink(),
        "is not complete, images.txt missing",
    ),
}


@pytest.mark.parametrize("what", LISTS)
def test_lists(what, root):
    "Found where an experiment is prepared: no kernel is started for it."
    damage, said = LISTS[what]
    damage(root)
    with pytest.raises((DamagedData, DataNotFound), match=said):
        prepare("pddm_retrieval", dict(dataset="cub", data_root=str(root)))


FOLDERS = {
    "a link to a folder": (
        lambda f: (f / "again").symlink_to("."),
        "1 folders are links, the first is 001.Bird_1/again",
    ),
    "a class that is a link": (
        lambda f: (f.parent / "000").symlink_to("/etc"),
        "1 folders are links, the first is 000",
    ),
    "a link out of the folder": (
        lambda f: (f / "9.jpg").symlink_to("/etc/passwd"),
        "1 images are links that lead out of the folder, the first is 001.Bird_1/9.jpg",
    ),
    "a folder named like an image": (
        lambda f: (f / "9.jpg").mkdir(),
        "1 folders are named like images, the first is 001.Bird_1/9.jpg",
    ),
    "a broken link": (
        lambda f: (f / "9.jpg").symlink_to("nowhere.jpg"),
        "1 of 65 images are missing, the first is 001.Bird_1/9.jpg",
    ),
    "a pipe": (
        lambda f: os.mkfifo(f / "9.jpg"),
        "1 of 65 images are missing, the first is 001.Bird_1/9.jpg",
    ),
    "a name that is not UTF-8": (
        lambda f: shutil.copy(f / "3.jpg", f / os.fsdecode(b"\xff.jpg")),
        r"1 names are not text that can be printed, the first is '001.Bird_1/\\udcff.jpg'",
    ),
    "a download that has not ended": (
        lambda f: (
            (f / "9.jpg").rename(f / "9.jpg.part")
            if (f / "9.jpg").exists()
            else (f / "9.jpg.part").write_bytes(b"x")
        ),
        "1 files are not images, the first is 001.Bird_1/9.jpg.part",
    ),
    "an image beside the classes": (
        lambda f: shutil.copy(f / "3.jpg", f.parent / "loose.jpg"),
        "1 images lie beside the folders of the classes and belong to none, the first is loose.jpg",
    ),
    "an image of a kind that is not read": (
        lambda f: (f.parent / "loose.HEIC").write_bytes(b"x"),
        "1 images lie beside the folders of the classes and belong to none, the first is loose.HEI",
    ),
    "an empty class": (
        lambda f: (f.parent / "000").mkdir(),
        "1 folders have no images, the first is 000",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folders(what, root):
    damage, said = FOLDERS[what]
    train = root / "mini-imagenet" / "train"
    damage(train / "001.Bird_1")
    with pytest.raises((DamagedData, DataNotFound), match=said) as told:
        photos_from_folder(train)
    str(told.value).encode()  # can be printed anywhere
    with pytest.raises(
        (DamagedData, DataNotFound), match=said.split(", the first")[0].replace("65", "97")
    ):
        prepare("nsl_fewshot", dict(dataset="mini_imagenet", data_root=str(root)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(photos_from_folder(train, on_error="skip")) == 64  # the others, every one once


def test_images_beside_the_parts(root):
    "What lies beside train, val and test, or in a folder that no list of CUB names, is counted."
    birds, parts = root / "CUB_200_2011" / "images", root / "mini-imagenet"
    shutil.copy(birds / "001.Bird_1" / "3.jpg", parts / "loose.jpg")
    said = "1 images lie beside the parts of the set and belong to none, the first is loose.jpg"
    for split in (None, "train"):
        with pytest.raises(DamagedData, match=said):
            load_photos("mini_imagenet", root, split)
    assert said in photo_faults("mini_imagenet", root, decode=False)[2][0]
    (birds / "000.New").mkdir()
    for place in (birds, birds / "000.New"):
        shutil.copy(birds / "001.Bird_1" / "3.jpg", place / "loose.jpg")
    faults = photo_faults("cub", root, decode=False)[2]
    assert len(faults) == 1 and "2 images are in no list, the first is images/000.New" in faults[0]


HIDDEN = {
    "a notebook's copies": ".ipynb_checkpoints",
    "a hidden folder in a class": ".thumbnails/deep",
    "an archive's folder": "__MACOSX",
    "a file server's folder": "@eaDir",
    "a file server's bin": "@Recycle",
    "a file server's snapshots": "#snapshot/daily",
    "a file server's uploads": "@tmp",
    "a file server's thumbnails": "@__thumb",
    "a version control's folder": "CVS",
}


@pytest.mark.parametrize("level", ["", "001.Bird_1", "001.Bird_1/deep"])
@pytest.mark.parametrize("what", HIDDEN)
def test_folders_of_tools(what, level, root):
    "What a tool has put beside the images is no image of the class: passed over, and told."
    train = root / "mini-imagenet" / "train"
    before = photos_from_folder(train)
    for image in (train / "001.Bird_1").glob("*.jpg"):
        copy = train / level / HIDDEN[what] / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    with pytest.warns(Noticed, match="1 hidden folders, or folders of a tool, hold images that"):
        after = photos_from_folder(train)
    assert after.paths == before.paths
    assert after.classes == before.classes


def test_images_that_are_there_twice(root):
    "Copies are told by every reader and by `data check`, with their names; none is left out."
    train, birds = root / "mini-imagenet" / "train", root / "CUB_200_2011" / "images"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none to begin with
        photos_from_folder(train)
        load_photos("cub", root)
    shutil.copy(train / "001.Bird_1" / "3.jpg", train / "002.Bird_2" / "new.jpg")
    shutil.copy(birds / "001.Bird_1" / "3.jpg", birds / "002.Bird_2" / "3.jpg")
    said = "1 of {} images hold the same bytes as an earlier one, the first is {}, a copy of {}"
    copy, first = "002.Bird_2/new.jpg", "001.Bird_1/3.jpg"
    with pytest.warns(Noticed, match=said.format(65, copy, first)):
        assert len(photos_from_folder(train)) == 65
    copy, first = "images/002.Bird_2/3.jpg", "images/001.Bird_1/3.jpg"
    with pytest.warns(Noticed, match=said.format(96, copy, first)):
        assert len(load_photos("cub", root)) == 96
    state = data_state("cub", root, decode=True)
    assert state.state == "incomplete"  # of 11,788 images
    assert [said.format(96, copy, first) in note for note in state.notes] == [True]


def make_imagenet(root):
    "Three classes of eight images each, in two parts."
    for n, part in enumerate(("train", "val")):
        for c in "abc":
            folder = root / "imagenet" / part / c
            folder.mkdir(parents=True)
            for k in range(8):
                draws = np.random.default_rng([n, ord(c), k])
                noise = draws.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(noise).save(folder / f"{k}.png")
    return root / "imagenet"


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@Recycle"])
@pytest.mark.parametrize("name", ["cub", "mini_imagenet", "imagenet"])
def test_folders_of_tools_in_the_root_of_a_set(name, hidden, root):
    "Told by the readers of sets in parts, and by `data check` at every level of every set."
    make_imagenet(root)
    folder = root / {"cub": "CUB_200_2011", "mini_imagenet": "mini-imagenet"}.get(name, name)
    image = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))[0]
    shutil.copy(image, folder / f".{image.name}")  # a hidden file is passed over without a word
    assert data_state(name, root, decode=True).notes == ()
    places = [folder / hidden, image.parent / hidden]
    places[0].mkdir()
    shutil.copy(image, places[0])
    said = "1 hidden folders, or folders of a tool, hold images that are passed over, the first is "
    if name != "cub":  # whose lists name every image
        read = load_splits if name == "imagenet" else load_photos
        with pytest.warns(Noticed, match=said + hidden):
            read(name, root)
    assert data_state(name, root).faults[0].endswith("experiments run on such a part, too.")
    state = data_state(name, root, decode=True)
    assert [said + hidden in note for note in state.notes] == [True], state
    places[1].mkdir()
    shutil.copy(image, places[1])
    (note,) = data_state(name, root, decode=True).notes
    assert "2 hidden folders" in note
    (folder / "train" if name == "imagenet" else image.parent).joinpath("cut.png").touch()
    state = data_state(name, root, decode=True)
    assert state.state == "damaged" and state.notes == (note,)  # beside what is wrong


def test_images_beside_the_parts_of_imagenet(root):
    "Counted by both readers and by `data check`."
    folder = make_imagenet(root)
    load_splits("imagenet", root)
    shutil.copy(folder / "train" / "a" / "3.png", folder / "stray.png")
    said = "1 images lie beside the parts of the set and belong to none, the first is stray.png"
    with pytest.raises(DamagedData, match=said):
        load_splits("imagenet", root)
    with pytest.raises(DamagedData, match=said):
        photos_from_parts(folder, ("train", "val"))
    with pytest.warns(UserWarning, match=said):
        train, val = photos_from_parts(folder, ("train", "val"), on_error="skip")
    assert (len(train), len(val), train.skipped[0]) == (24, 24, f"{said}")
    assert said in photo_faults("imagenet", root, decode=False)[2][0]


def test_images_that_are_there_in_two_formats(root):
    "The same pixels in files of other bytes are told by `data check`, which decodes them anyway."
    folder = make_imagenet(root)
    Image.open(folder / "train" / "a" / "3.png").save(folder / "val" / "b" / "new.bmp")
    Image.open(folder / "train" / "a" / "4.png").save(folder / "val" / "b" / "new.jpg")  # others
    pixels = np.zeros((2, 8, 3), np.uint8)
    for i, shape in enumerate(((2, 8, 3), (8, 2, 3))):  # the same bytes of pixels, another shape
        Image.fromarray(pixels.reshape(shape)).save(folder / "val" / "c" / f"flat{i}.png")
    (note,) = data_state("imagenet", root, decode=True).notes
    said = "1 of 52 images hold the same pixels as an earlier one in another file, the first is {}"
    assert said.format("val/b/new.bmp, like train/a/3.png; nothing is left out") in note
    shutil.copy(folder / "train" / "a" / "3.png", folder / "val" / "b" / "copy.png")
    notes = data_state("imagenet", root, decode=True).notes
    assert len(notes) == 2 and "1 of 53 images hold the same bytes" in notes[0]  # counted once
    assert "1 of 53 images hold the same pixels" in notes[1]


@pytest.fixture
def other_root(root, tmp_path):
    "The same names, counts and sizes of files; other images."
    other = shutil.copytree(root, tmp_path / "other")
    for n, path in enumerate(sorted(other.rglob("*.jpg"))):
        pixels = np.random.default_rng(n).integers(0, 256, (2, 32, 32, 3), np.uint8)
        Image.fromarray(pixels[0]).save(root / path.relative_to(other), "BMP")
        Image.fromarray(pixels[1]).save(path, "BMP")
    return other


def test_features_of_other_images(root, other_root, tmp_path):
    "A cache of features is of these bytes: one of the same names and sizes is not taken for it."
    one, two = (load_photos("mini_imagenet", place) for place in (root, other_root))
    assert [p.stat().st_size for p in one.paths] == [p.stat().st_size for p in two.paths]
    first, second = (
        frozen_features(p, "pixels", 8, cache=tmp_path / "cache").values for p in (one, two)
    )
    alone = frozen_features(two, "pixels", 8, cache=tmp_path / "alone").values
    assert torch.equal(second, alone) and not torch.equal(first, second)


def test_runs_of_other_images(root, other_root, tmp_path):
    """A finished run, or a checkpoint, of other images is refused with a sentence; a copy of the
    images elsewhere is the same data; an entry that knows nothing of them is taken with another."""
    plan = replace(PRESETS["smoke"], classes=0, cache=True)
    known = dict(methods=["cnn"], plan=plan, device="cpu", output=tmp_path / "out")
    (entry,) = sweep("mini_imagenet", root=root, **known)
    assert len(entry.data) == 16
    refused = f"{entry_name(entry)} was made from other data than is here now .* resume=False"
    with pytest.raises(ValueError, match=refused):
        sweep("mini_imagenet", root=other_root, **known)
    copy = shutil.copytree(root, tmp_path / "copy")
    assert sweep("mini_imagenet", root=copy, **known) == [entry]

    file = run_folder(entry, tmp_path / "out") / "entry.json"
    text = file.read_text()
    file.unlink()  # as if it had been interrupted
    with pytest.raises(ValueError, match=refused):
        sweep("mini_imagenet", root=other_root, **known)
    fields = json.loads(text)
    del fields["data"]  # as entries were before
    file.write_text(json.dumps(fields))
    with pytest.warns(UserWarning, match="does not tell which data it was made from"):
        (old,) = sweep("mini_imagenet", root=root, **known)
    assert old.data == "" and entry_name(old) == entry_name(entry)
    (anew,) = sweep("mini_imagenet", root=other_root, resume=False, **known)
    assert anew.data not in ("", entry.data) and entry_name(anew) == entry_name(entry)


def test_every_run_on_photographs_tells_its_data():
    "Whoever reads photographs and records a run hands their fingerprint over."
    places = [*(ROOT / "nbs").rglob("*.ipynb")]
    found = 0
    for place in places:
        cells = json.loads(place.read_text())["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        readers = ("load_photos(", "photos_from_folder(", "photos_for(", "load_splits(")
        if "experiments" not in place.parts or not any(reader in text for reader in readers):
            continue
        tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", text))
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "recorded_run":
                assert "data" in [k.arg for k in call.keywords], (place.name, call.lineno)
                found += 1
    assert found > 8


@pytest.mark.parametrize("pair", [("train", "test"), ("train", "val"), ("val", "test")])
def test_parts_that_share_classes(pair, root):
    "A class in two parts is refused wherever they are read, and named by `data check`."
    parts = root / "mini-imagenet"
    one = sorted((parts / pair[0]).iterdir())[0]
    shutil.copytree(one, parts / pair[1] / one.name)
    said = f"no class in common, but 1 are in two of them, the first is {one.name} in {pair[0]} and"
    for read in (
        lambda: load_photos("mini_imagenet", root),
        lambda: load_photos("mini_imagenet", root, "test", on_error="skip"),
        lambda: load_splits("mini_imagenet", root),
        lambda: prepare("nsl_fewshot", dict(dataset="mini_imagenet", data_root=str(root))),
    ):
        with pytest.raises(DamagedData, match=said):
            read()
    assert said in photo_faults("mini_imagenet", root)[2][0]


SHARED = {  # experiment -> what is passed to it, and where a class is a copy of another's
    "nsl_fewshot": (["dataset=mini_imagenet", "way=2"], "mini-imagenet/{}/{}"),
    "nsl_fewshot on cub": (["dataset=cub", "way=2"], "CUB_200_2011/images/{1}"),
    "pddm_transfer": (["dataset=mini_imagenet"], "mini-imagenet/{}/{}"),
    "pddm_retrieval": (["dataset=cub"], "CUB_200_2011/images/{1}"),
}


@pytest.mark.parametrize("name", SHARED)
def test_classes_under_two_names(name, root, tmp_path, nsl_repro):
    "A class that is learned and, under another name, tested as unseen: no run begins."
    passed, place = SHARED[name]
    learned = root / place.format("train", "001.Bird_1")
    tested = root / place.format("test", "012.Bird_12")
    for image in learned.iterdir():
        shutil.copy(image, tested / image.name)
    words = [word for value in ("preset=smoke", *passed) for word in ("-p", value)]
    words += ["-p", f"data_root={root}", "-o", tmp_path / "out"]
    done = nsl_repro("run", name.split()[0], *words, OMP_NUM_THREADS="1")
    assert done.returncode == 3 and "test images are training images, too" in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name == "entry.json"]


def test_images_under_two_names(root, tmp_path, nsl_repro):
    "The same where the classes are the same, and images are learned and tested."
    learned, *others = sorted((root / "CUB_200_2011" / "images" / "001.Bird_1").iterdir())
    for other in others:
        shutil.copy(learned, other)
    words = ["-p", "preset=smoke", "-p", "dataset=cub", "-p", f"data_root={root}"]
    done = nsl_repro("run", "nsl_adapt", *words, "-o", tmp_path / "out", OMP_NUM_THREADS="1")
    assert done.returncode == 3 and "test images are training images, too" in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name == "entry.json"]


def test_images_of_several_parts(root):
    "Each part is compared with all before it, and each file is read once."
    parts = [load_photos("mini_imagenet", root, part) for part in ("train", "val", "test")]
    check_disjoint(*parts)
    shutil.copy(parts[1].paths[3], parts[2].paths[5])
    with pytest.raises(DamagedData, match="1 of 16 test images are training images, too") as told:
        check_disjoint(*parts)
    assert f"the first is {parts[2].paths[5]}, a copy of {parts[1].paths[3]}" in str(told.value)
    check_disjoint(parts[0], parts[1])
    check_disjoint(parts[0], parts[2])


def test_images_that_are_learned_and_tested(root):
    "Where the classes are the same, the images of the parts are compared by their bytes."
    folder = make_imagenet(root)
    load_splits("imagenet", root)
    shutil.copy(folder / "train" / "a" / "3.png", folder / "val" / "a" / "5.png")
    with pytest.raises(DamagedData, match="1 of 24 test images are training images, too, the fi"):
        load_splits("imagenet", root)
    bird = root / "mini-imagenet" / "train" / "001.Bird_1"
    load_splits("mini_imagenet", root)
    shutil.copy(bird / "1.jpg", bird / "7.jpg")  # the last sixth of each class is tested
    with pytest.raises(DamagedData, match="test images are training images, too"):
        load_splits("mini_imagenet", root)


def test_half_a_download(tmp_path, monkeypatch):
    "Of a set with published checksums every file is compared, and the ones that differ are named."
    source, contents = (
        catalogue.SOURCES["cifar10"],
        {file: os.urandom(1000) for file in catalogue.SOURCES["cifar10"].files},
    )
    monkeypatch.setitem(
        catalogue.SOURCES,
        "cifar10",
        replace(source, files={file: md5(data).hexdigest() for file, data in contents.items()}),
    )
    folder = tmp_path / source.folders[0]
    folder.mkdir()
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    assert check_files("cifar10", tmp_path) == folder
    cut(folder / "data_batch_3")
    (folder / "test_batch").write_bytes(
        contents["test_batch"][:-1] + bytes([contents["test_batch"][-1] ^ 1])
    )
    with pytest.raises(
        DataNotFound, match="the md5 of data_batch_3, test_batch is not the published one"
    ):
        prepare("nsl_cifar", dict(dataset="cifar10", data_root=str(tmp_path)))
    (folder / "batches.meta").unlink()
    with pytest.raises(DataNotFound, match="is not complete .*batches.meta missing"):
        prepare("nsl_cifar", dict(dataset="cifar10", data_root=str(tmp_path)))


CACHES = {
    "rows cut": lambda rows, state, old: rows.write_bytes(rows.read_bytes()[:-1]),
    "rows of others": lambda rows, state, old: rows.write_bytes(os.urandom(rows.stat().st_size)),
    "state cut": lambda rows, state, old: state.write_text(state.read_text()[:-3]),
    "of another network": lambda rows, state, old: (
        rows.write_bytes(bytes(40)),
        state.write_text(json.dumps(dict(done=10, dim=1, damaged=[], crc=zlib.crc32(bytes(40))))),
    ),
    "too many": lambda rows, state, old: (
        rows.write_bytes(bytes(12_000)),
        state.write_text(json.dumps(old | dict(done=1000, crc=zlib.crc32(bytes(12_000))))),
    ),
    "negative": lambda rows, state, old: state.write_text(json.dumps(old | dict(done=-1))),
    "damaged ones that are not there": lambda rows, state, old: state.write_text(
        json.dumps(old | dict(damaged=[10**9]))
    ),
    "counted from the end": lambda rows, state, old: (
        rows.write_bytes(rows.read_bytes()[:-12]),
        state.write_text(json.dumps(old | dict(damaged=[-1], crc=zlib.crc32(rows.read_bytes())))),
    ),
    "text for numbers": lambda rows, state, old: state.write_text(
        json.dumps(old | dict(done="96", damaged="x"))
    ),
    "deep": lambda rows, state, old: state.write_text("[" * 100_000),
    "a pickle": lambda rows, state, old: state.write_bytes(b"\x80\x04cos\nsystem\n"),
}


@pytest.mark.parametrize("what", CACHES)
def test_feature_caches(what, published, tmp_path):
    "A cache that is cut, or not of these images and this network, is computed anew."
    from nsl_repro.data.features import Backbone

    photos = photos_from_folder(published / "mini-imagenet" / "test")
    network = Backbone(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), "mean", 3
    )
    wanted = frozen_features(photos, network, 8, cache=tmp_path).values.clone()
    rows, state = (next(tmp_path.glob(f"*.{suffix}")) for suffix in ("f32", "json"))
    CACHES[what](rows, state, json.loads(state.read_text()))
    found = frozen_features(photos, network, 8, cache=tmp_path)
    assert found.values.equal(wanted) and found.kept.tolist() == list(range(2 * EACH))


def everything(folder):
    "What lies there: names, kinds, contents."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        if stat.S_ISREG(p.lstat().st_mode)
        else p.lstat().st_mode
        for p in folder.rglob("*")
    }


def tar(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (
                kind,
                target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
            )
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"evil"))
    return stream.getvalue()


def zipped(*members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, mode, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return stream.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
GOOD = ("CUB_200_2011/images.txt", FILE, "")
ARCHIVES = {  # {out} is a folder beside the data root
    "upwards": lambda out: tar(GOOD, ("CUB_200_2011/../../outside/evil", FILE, "")),
    "upwards at once": lambda out: tar(("../outside/evil", FILE, "")),
    "absolute": lambda out: tar(GOOD, (f"{out}/evil", FILE, "")),
    "through a link": lambda out: tar(
        GOOD, ("CUB_200_2011/images", LINK, str(out)), ("CUB_200_2011/images/evil", FILE, "")
    ),
    "over a hard link": lambda out: tar(
        GOOD, ("CUB_200_2011/secret", HARD, f"{out}/secret"), ("CUB_200_2011/secret", FILE, "")
    ),
    "a device": lambda out: tar(GOOD, ("CUB_200_2011/null", tarfile.CHRTYPE, "")),
    "a pipe": lambda out: tar(GOOD, ("CUB_200_2011/pipe", tarfile.FIFOTYPE, "")),
    "cut": lambda out: tar(*[(f"CUB_200_2011/{i}", FILE, "") for i in range(200)])[:-200],
    "zip slip": lambda out: zipped(
        ("CUB_200_2011/images.txt", 0o100644, b"x"), ("../outside/evil", 0o100644, b"evil")
    ),
    "zip slip backwards": lambda out: zipped(("..\\outside\\evil", 0o100644, b"evil")),
    "zip absolute": lambda out: zipped((f"{out}/evil", 0o100644, b"evil")),
    "zip link": lambda out: zipped(
        ("CUB_200_2011/images", stat.S_IFLNK | 0o777, str(out).encode()),
        ("CUB_200_2011/images/evil", 0o100644, b"evil"),
    ),
    "zip drive": lambda out: zipped(("C:/evil", 0o100644, b"evil")),
    "not an archive": lambda out: b"<html>404</html>",
    "another top": lambda out: tar(("else/images.txt", FILE, "")),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives(what, tmp_path, monkeypatch):
    "Refused whole, even one whose checksum is the published one."
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "secret").write_text("secret")
    data = ARCHIVES[what](outside)
    archive = root / ("CUB_200_2011.zip" if what.startswith("zip") else "CUB_200_2011.tgz")
    archive.write_bytes(data)
    source = catalogue.SOURCES["cub"]
    monkeypatch.setitem(
        catalogue.SOURCES,
        "cub",
        replace(
            source,
            url=f"http://127.0.0.1:9/{archive.name}",
            md5=md5(data).hexdigest(),
            size=len(data),
        ),
    )
    before = everything(tmp_path)
    with pytest.raises(DataNotFound, match=f"could not be brought to {root} .*{archive.name}"):
        fetch_data("cub", root)
    assert {k: v for k, v in everything(tmp_path).items() if not k.endswith(".lock")} == before


def test_wrong_checksums_and_planted_links(tmp_path):
    """What arrives is not the published file; and where another's link waits under the name of a
    begun download, nothing is written through it."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(b"published")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url, goal, precious = (
        f"http://127.0.0.1:{server.server_port}/file",
        tmp_path / "root" / "file",
        tmp_path / "precious",
    )
    try:
        with pytest.raises(DownloadFailed, match="is not the published file: its md5 must be"):
            download(url, goal, md5="0" * 32, wait=0)
        assert [p.name for p in goal.parent.iterdir() if p.name[0] != "."] == []
        precious.write_text("precious")
        for name in ("file", "file.part", "file.part.json"):
            (goal.parent / name).unlink(missing_ok=True)
            (goal.parent / name).symlink_to(precious)
        assert (
            download(url, goal, md5=md5(b"published").hexdigest(), wait=0).read_bytes()
            == b"published"
        )
        assert not goal.is_symlink() and precious.read_text() == "precious"
    finally:
        server.shutdown()
        server.server_close()
