"""The transfer experiment on a folder of ImageNet's layout, made on the spot: with and without a
`val` folder."""

import numpy as np
import pytest
from PIL import Image

from nsl_repro.results.ledger import load_ledger

pytest.importorskip("pytorch_metric_learning")
WNIDS = [
    "n01530575",
    "n01532829",
    "n01558993",
    "n01614925",
    "n01704323",
    "n01749939",
    "n01770081",
    "n01784675",
    "n01843383",
    "n01855672",
    "n01910747",
    "n01930112",
]


def write_classes(folder, each, seed):
    "Noise around a colour of the class's own."
    rng = np.random.default_rng(seed)
    for c, wnid in enumerate(WNIDS):
        (folder / wnid).mkdir(parents=True)
        colour = np.random.default_rng(c).integers(40, 215, 3)
        for i in range(each):
            pixels = np.clip(colour + rng.normal(0, 4, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / wnid / f"{seed}_{i}.png")


@pytest.mark.parametrize("val", [False, True], ids=["train only", "train and val"])
def test_imagenet_folder(val, nsl_repro, tmp_path):
    write_classes(tmp_path / "imagenet" / "train", 14, 0)
    if val:
        write_classes(tmp_path / "imagenet" / "val", 6, 1)
    done = nsl_repro(
        "run",
        "pddm_transfer",
        "-p",
        "preset=smoke",
        "-p",
        "dataset=imagenet",
        "-p",
        f"data_root={tmp_path}",
        "-o",
        tmp_path / "out",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list((tmp_path / "cache" / "features").glob("imagenet*.f32")), (
        "features must be cached in the data root"
    )
    entries = {e.method: e for e in load_ledger(tmp_path / "out", experiment="pddm_transfer")}
    assert len(entries) == 5
    frozen = entries[
        "frozen"
    ].metrics  # classes are colours: one labelled image tells the two unseen ones apart
    assert frozen["hit_at_1_from_1"] > 90 and frozen["hit_at_1_from_5"] > 90
    assert all(
        0 <= e.metrics[key] <= 100 for e in entries.values() for key in e.metrics if "hit_at" in key
    )
    assert (
        "score_hit_at_1_from_1" in entries["pddm_quadruplet"].metrics
        and "conse_zero_shot_hit_at_1" in entries["softmax"].metrics
    )
    (executed,) = (tmp_path / "out" / "runs").glob("pddm_transfer*.ipynb")
    text = executed.read_text(encoding="utf-8")
    assert "| seen | 8 |" in text and "| unseen | 2 |" in text


def test_missing_folder_is_one_sentence(nsl_repro, tmp_path):
    done = nsl_repro(
        "run",
        "pddm_transfer",
        "-p",
        "preset=smoke",
        "-p",
        "dataset=imagenet",
        "-p",
        f"data_root={tmp_path}",
        "-o",
        tmp_path / "out",
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert str(tmp_path / "imagenet") in done.stderr
