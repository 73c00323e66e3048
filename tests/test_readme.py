"""The README: its tables are the ledger's, its picture shows the ledger's numbers, its examples
run, its commands exist."""

import json
import math
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from nsl_repro.results.answers import answer
from nsl_repro.results.pages import drawn_from, fill, findings, learned_digest, readme_parts
from nsl_repro.results.ledger import entry_name, load_published
from nsl_repro.command.parameters import parse_assignments, read_parameters, resolve
from nsl_repro.command.runner import find_notebook

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
LINES = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]


def test_tables_and_picture_are_the_ledgers():
    "Of the runs that are committed: a user's own may lie beside them."
    tracked = subprocess.run(
        ["git", "ls-files", "data/results"], cwd=ROOT, capture_output=True, text=True
    )
    names = (
        {Path(line).stem for line in tracked.stdout.splitlines()}
        if tracked.returncode == 0
        else None
    )
    ledger = [e for e in load_published(ROOT / "data") if names is None or entry_name(e) in names]
    assert TEXT == fill(TEXT, readme_parts(ledger)), "run `make readme`"
    assert drawn_from(ROOT / "docs" / "learned.png") == learned_digest(ledger), "run `make readme`"


def test_what_is_told_of_heads_is_the_ledgers():
    "How many runs learn under each head of the network, by the published entries."
    learned, runs = Counter(), Counter()
    for e in load_published(ROOT / "data", experiment="nsl_stability", dataset="cifar10"):
        if (e.preset, e.parameters.get("variant")) != ("quick", "paper"):
            continue
        if head := e.parameters.get("head"):
            losses = [e.metrics.get(f"train_loss_at_{rate}") for rate in ("0.02", "0.1")]
            runs[head] += len(losses)
            learned[head] += sum(v is not None and v <= math.log(10) - 0.05 for v in losses)
    text = " ".join(TEXT.split())
    assert learned["direct"] == 0
    assert f"none of {runs['direct']} runs with this head learned" in text
    assert f"{learned['fc']} of {runs['fc']} with the paper's fully connected layer" in text
    norm = learned["direct_norm"], runs["direct_norm"]
    assert "{} of {} with a batch norm behind the released head".format(*norm) in text


def test_the_answers_in_the_notebooks_are_the_ledgers():
    for path in sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        call = f'answer("{path.stem}")'
        (cell,) = [c for c in cells if call in "".join(c["source"]).splitlines()]
        stored = "".join(cell["outputs"][0]["data"]["text/markdown"])
        assert stored == answer(path.stem).text, f"{path.name}: run `make readme`"
        assert cells.index(cell) <= 2


def test_what_is_told_of_features_without_training_is_the_ledgers():
    "And that the dense kernels, the other half of a claim and the tuned rival are in the table."
    found = findings([e for e in load_published(ROOT / "data") if e.preset != "smoke"])
    frozen = [f.word for f in found if f.headline.rival == "frozen"]
    assert "Why were features without training better than PDDM?" in TEXT
    assert len(frozen) == 3 and set(frozen) == {"worse"}
    for words in (
        *("dense kernels recovered", "recall at 1 by score", "its own settings", "PDDM's settings"),
        *("half of the classes", "half of the images", "not trained"),
    ):
        assert words in TEXT


def test_ten_lines_are_enough_to_begin():
    code = next(code for language, code in BLOCKS if language == "python")
    assert TEXT.index(code) < 1500
    assert len([line for line in code.splitlines() if line and line[0] != "#"]) <= 10


def test_there_are_no_other_blocks():
    assert {language for language, _ in BLOCKS} == {"sh", "python", "bibtex"}


@pytest.mark.parametrize(
    "code",
    [code for language, code in BLOCKS if language == "python"],
    ids=["quickstart", "layer", "model", "tune", "metric", "load"],
)
def test_examples_run(code, tmp_path, monkeypatch):
    import torch
    from PIL import Image

    from nsl_repro.training.models import cnn9
    from nsl_repro.training.weights import Preprocessing, keep_model

    for c in range(8):  # the folder of photographs that one of them speaks of
        (tmp_path / "photos" / f"class {c}").mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (90, 80), (30 * c, 50 * i, 100)).save(
                tmp_path / "photos" / f"class {c}" / f"{i}.jpg"
            )
    net = cnn9(
        "static_uns", num_classes=10, width=0.125, in_channels=1, image_size=16
    )  # the run that the last one loads
    keep_model(
        tmp_path / "data" / "exports" / "mine",
        net,
        "cnn9",
        dict(method="static_uns", num_classes=10, width=0.125, in_channels=1, image_size=16),
        Preprocessing(input="raw", size=[1, 16, 16]),
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code.replace("10 * size", "2 * size"), "README.md", "exec"), {})


def test_the_metric_example_knows_what_is_no_data(tmp_path, monkeypatch):
    "Where a tool keeps a copy of every image, a class has the images that its folder shows."
    import numpy as np
    import torch
    from PIL import Image

    from nsl_repro.data.photos import Noticed

    (code,) = [code for _, code in BLOCKS if "MPerClassSampler" in code]
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 80, 80, 3), np.uint8)
    for c, images in enumerate(noise):
        kept = tmp_path / "photos" / f"class {c}" / ".ipynb_checkpoints"
        kept.mkdir(parents=True)
        for i, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            image.save(kept.parent / f"{i}.png")
            image.save(kept / f"{i}-checkpoint.png")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    with pytest.warns(Noticed, match="8 hidden folders, or folders of a tool, hold images"):
        exec(compile(code.replace("10 * size", "2 * size"), "README.md", "exec"), names)
    assert len(names["photos"]) == len(names["features"]) == len(names["labels"]) == 48
    assert not any(".ipynb_checkpoints" in path.parts for path in names["photos"].paths)
    found = names["evaluate_retrieval"](names["features"], names["labels"], ks=(1,))
    assert found["recall_at_1"] < 50  # of noise; of copies it would be 100


@pytest.mark.parametrize("line", LINES)
def test_commands_exist(line, nsl_repro):
    "Whether a command would start; what the long ones do is tested elsewhere."
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        made = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        runs = [shlex.split(step) for step in made.stdout.splitlines() if "nsl-repro run" in step]
        for run in runs:
            checked(run[1:])
    elif words[0] == "nsl-repro" and words[1] == "run":
        checked(words[1:])
    elif words[:3] in (["nsl-repro", "data", "get"], ["nsl-repro", "data", "check"]) or words[
        1
    ] in ("export", "--install-completion"):
        assert (
            nsl_repro(
                *words[1 : 3 if words[1] == "data" else 2 if words[1] == "export" else 1], "--help"
            ).returncode
            == 0
        )  # done for real in test_command.py, test_weights.py
    elif "--against" in words:  # of one's own runs, of which a checkout has none
        done = nsl_repro(*words[1:])
        assert done.returncode in (0, 2) and (done.stdout or "runs of yours" in done.stderr)
    elif words[0] == "nsl-repro":
        done = nsl_repro(*words[1:])
        assert done.returncode == 0, done.stderr
    else:
        assert words[:2] == ["pip", "install"]  # test_packaging.py does that


def checked(words: list[str]) -> None:
    "`run NAME -p NAME=VALUE ...` names an experiment, and values that it takes."
    assert words[0] == "run"
    parameters = read_parameters(find_notebook(words[1]))
    assert resolve(
        parameters,
        parse_assignments([value for flag, value in zip(words, words[1:]) if flag == "-p"]),
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_it_says_how_to_cite():
    "Both papers and this version, as `CITATION.cff` does."
    import yaml

    import nsl_repro

    (bibtex,) = [block for language, block in BLOCKS if language == "bibtex"]
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for reference in cff["references"]:
        assert f"title = {{{reference['title']}}}" in bibtex
        assert f"year = {{{reference['year']}}}" in bibtex
        for author in reference["authors"]:
            assert f"{author['family-names']}, {author['given-names']}" in bibtex
    assert f"version = {{{nsl_repro.__version__}}}" in bibtex
    assert cff["version"] == nsl_repro.__version__
    date = str(cff["date-released"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {nsl_repro.__version__} - {date}" in changes
