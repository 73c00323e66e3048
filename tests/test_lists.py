"""What stands in more than one list stands in all of them: methods, data sets, notebooks. Whoever
adds one is told what is missing; CONTRIBUTING names the places."""

import json
import re
from itertools import combinations
from typing import get_args

import pytest
from conftest import ROOT

from nsl_repro.command.cli import BAD_USAGE
from nsl_repro.command.parameters import read_parameters
from nsl_repro.data.folder import OWN
from nsl_repro.data.images import DATASETS, load_dataset
from nsl_repro.data.photos import PHOTO_SETS, WHOLE, load_photos
from nsl_repro.data.sources import SOURCES
from nsl_repro.results.methods import COMPARISONS, METHOD_STYLES
from nsl_repro.training.adaptation import ADAPTATIONS
from nsl_repro.training.embedding import EMBEDDING_METHODS
from nsl_repro.training.imagenet import IMAGENET_METHODS
from nsl_repro.training.models import METHODS, cnn9
from nsl_repro.training.weights import _LICENCES

EXPERIMENTS = {p.stem: p for p in sorted((ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))}
BUILT = {  # experiment -> what the library builds for it
    "nsl_cifar": METHODS,
    "nsl_imagenet": IMAGENET_METHODS,
    "nsl_adapt": ADAPTATIONS,
    "pddm_retrieval": tuple(EMBEDDING_METHODS),
}
OFFERS_SOME = {"nsl_adapt"}
ON_PURPOSE = {"nsl_stability"}  # a panel for each method: those of a family are drawn alike
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def offered(name, parameter):
    found = read_parameters(EXPERIMENTS[name])[parameter]
    return found.choices or get_args(found.type)


def alike(methods):
    "Pairs that a figure could not tell apart, in words."
    for a, b in combinations(methods, 2):
        if METHOD_STYLES[a][1:] == METHOD_STYLES[b][1:]:
            color, line = METHOD_STYLES[a][1:]
            yield f"{a} and {b} have both {color} and {line!r}: give one another color or line"


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_is_offered(name):
    built, asked = set(BUILT[name]), set(offered(name, "methods"))
    assert asked <= built, f"{name} offers {asked - built}, which the library does not build"
    if name not in OFFERS_SOME:
        assert built <= asked, f"the library builds {built - asked}, which {name} does not offer"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_layers(method):
    "Of its own: `cnn9` refuses a name that no branch of `_middle_layers` builds."
    cnn9(method, width=0.125, image_size=16)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_methods_have_a_label_and_a_look_of_their_own(name):
    methods = offered(name, "methods") if name != "atlas" else []  # a system is a notebook there
    assert not (missing := set(methods) - METHOD_STYLES.keys()), f"not in methods.json: {missing}"
    if name not in ON_PURPOSE:
        assert not (found := list(alike(methods))), f"{name}: {'; '.join(found)} in methods.json"


def test_two_of_a_look_are_seen():
    (told,) = alike(["cnn", "static_dns", "cnn_fc"])
    assert told.startswith("cnn and cnn_fc have both #222222 and '-'")


def test_comparisons_are_of_experiments():
    ends = re.compile(r"_(lr|tuning|pretraining|step|reference|layer|whole)$")
    known = {ends.sub("", name) for name in COMPARISONS}
    assert known <= EXPERIMENTS.keys(), sorted(known - EXPERIMENTS.keys())


GENERATED = ("synthetic", "dictionary", "planted")  # drawn anew by each run, from no files


def test_data_sets_are_known_and_described():
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        data_sets = set(offered(name, "dataset")) - {OWN, *GENERATED}
        unknown = data_sets - SOURCES.keys()
        assert not unknown, f"{name} offers {unknown}, which are not in SOURCES"
        unread = data_sets - DATASETS.keys() - PHOTO_SETS.keys() - {"imagenet"}  # in data.splits
        assert not unread, f"{name} offers {unread}, not in DATASETS and not in PHOTO_SETS"
    assert {*DATASETS, *PHOTO_SETS} <= SOURCES.keys()
    assert PHOTO_SETS.keys() <= WHOLE.keys()
    assert SOURCES.keys() <= _LICENCES.keys(), "_LICENCES lacks a data set"
    for name in (*SOURCES, OWN):
        assert f"| `{name}` |" in readme, f"data/README.md must have a row for {name}"


def test_a_data_set_without_a_reader_is_refused(monkeypatch, tmp_path):
    for known in (SOURCES, PHOTO_SETS):
        monkeypatch.setitem(known, "dogs", known["cub"])
    monkeypatch.setitem(DATASETS, "dogs", DATASETS["cifar10"])
    (tmp_path / SOURCES["cub"].folders[0]).mkdir()
    (tmp_path / SOURCES["cub"].folders[0] / SOURCES["cub"].marks[0]).touch()
    with pytest.raises(ValueError, match="load_photos has a reader for, got 'dogs'"):
        load_photos("dogs", tmp_path)
    monkeypatch.setitem(SOURCES, "dogs", SOURCES["digits"])
    with pytest.raises(ValueError, match="load_dataset has a reader for, got 'dogs'"):
        load_dataset("dogs")


def test_notebooks_stand_in_the_tour():
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    tour = "".join("".join(cell["source"]) for cell in cells)
    for path in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        if path.parent.name[0] not in "._" and path.name[0] not in "._":
            place = path.relative_to(ROOT / "nbs").as_posix()
            assert f"({place})" in tour, f"the table of notebooks in nbs/index.ipynb lacks {place}"


def test_a_method_in_the_notebook_alone_is_refused(nsl_repro, tmp_path):
    "Before anything is trained, in a copy of the project's experiments."
    folder = tmp_path / "nbs" / "experiments"
    folder.mkdir(parents=True)
    text = EXPERIMENTS["nsl_cifar"].read_text(encoding="utf-8")
    added = text.replace('\\"cnn\\",\\n', '\\"cnn\\",\\n",\n    "        \\"cnn_deep\\",\\n', 1)
    assert added != text
    (folder / "nsl_cifar.ipynb").write_text(added, encoding="utf-8")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = nsl_repro\n")
    where = dict(cwd=tmp_path, PYTHONPATH=str(ROOT))
    done = nsl_repro("run", "nsl_cifar", "-p", "methods=cnn_deep", "-p", "preset=smoke", **where)
    assert done.returncode == BAD_USAGE, done.stderr
    assert "got 'cnn_deep', which is in nsl_cifar.ipynb only." in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("title", ["A notebook", "A method", "A data set"])
def test_contributing_names_files_that_exist(title):
    "Each path in code marks of the section is there; `name` and `NN_name` stand for new ones."
    section = re.search(rf"## {title}, in .*? steps\n(.*?)\n## ", CONTRIBUTING, re.S)
    assert section, title
    paths = re.findall(r"`((?:nbs|data|docs|tests|nsl_repro)/[\w./]+)`", section[1])
    assert len(paths) > 2
    for path in paths:
        assert "name" in path or (ROOT / path).exists(), path
