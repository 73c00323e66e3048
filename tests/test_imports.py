"""The wings of the library: what each may know, no circles, and nothing private from another wing.

Imports inside functions count like all others: they may save time, but they do not hide a circle.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

LIBRARY = ROOT / "nsl_repro"
MAY_KNOW = {  # wing -> the wings it may import from, besides itself
    "base": set(),
    "kernels": {"base"},
    "nsl": {"base", "kernels"},
    "pddm": {"base"},
    "data": {"base"},
    "results": {"base"},
    "training": {"base", "kernels", "nsl", "pddm", "data", "results"},
    "command": {"base", "data", "results", "training"},
    "atlas": {"base", "kernels", "nsl", "pddm", "data", "results", "training"},  # nobody knows it
}

OPTIONAL = {"kernels.gpu"}  # needs Triton, so that it is imported where it is used


def read_library(library=LIBRARY):
    "Module (`wing.name`) -> its source."
    found = {}
    for path in sorted(Path(library).glob("*/[!_]*.py")):
        found[f"{path.parent.name}.{path.stem}"] = path.read_text(encoding="utf-8")
    return found


def imports(module, source):
    "(module, name or None) of everything that a module imports from the library."
    wing = module.split(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("nsl_repro."):
                    yield name.name.removeprefix("nsl_repro."), None
        if not isinstance(node, ast.ImportFrom):
            continue
        start = {0: [], 1: ["nsl_repro", wing], 2: ["nsl_repro"]}[node.level]
        place = [*start, *filter(None, (node.module or "").split("."))]
        if place[:1] != ["nsl_repro"]:
            continue
        for name in node.names:
            if len(place) == 2:  # from nsl_repro.wing import module
                yield f"{place[1]}.{name.name}", None
            elif len(place) == 3:
                yield ".".join(place[1:]), name.name


def faults(modules):
    "Sentences about what is wrong between these modules (name -> source)."
    graph = {module: set() for module in modules}
    for module, source in modules.items():
        wing = module.split(".")[0]
        for other, name in imports(module, source):
            graph[module].add(other)
            there = other.split(".")[0]
            if there != wing and there not in MAY_KNOW[wing]:
                yield f"{module} imports {other}, but {wing} must not know {there}."
            if there != wing and name and name.startswith("_"):
                yield f"{module} imports {name} from {other}, but it is private there."
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle: {' -> '.join(error.args[1])}"


def test_the_library():
    assert not (found := list(faults(read_library()))), "\n".join(found)
    assert {module.split(".")[0] for module in read_library()} == MAY_KNOW.keys()


@pytest.mark.parametrize(
    "module, line, complaint",
    [
        ("base.files", "from nsl_repro.nsl.folding import fold", "base must not know nsl"),
        ("base.files", "from ..nsl.folding import fold", "base must not know nsl"),
        ("nsl.sphere", "def f():\n    from .attention import global_similarity", "a circle"),
        ("training.models", "from ..nsl.sphere import _full_precision", "private there"),
        ("kernels.cpu", "from nsl_repro.nsl import dynamic", "kernels must not know nsl"),
        ("results.pages", "from ..atlas.registry import map_rows", "results must not know atlas"),
    ],
)
def test_each_rule_is_seen_to_fail(module, line, complaint):
    modules = read_library()
    modules[module] += f"\n{line}\n"
    assert any(complaint in fault for fault in faults(modules))


def test_reading_order():
    "In its wing, a notebook imports from the notebooks before it."
    for folder in sorted(path for path in (ROOT / "nbs").iterdir() if path.name in MAY_KNOW):
        order = [path.stem.split("_", 1)[1] for path in sorted(folder.glob("[0-9]*.ipynb"))]
        modules = read_library()
        for place, name in enumerate(order):
            for other, _ in imports(f"{folder.name}.{name}", modules[f"{folder.name}.{name}"]):
                wing, there = other.split(".")
                known = wing != folder.name or other in OPTIONAL or there in order[:place]
                assert known, f"{folder.name}.{name} imports {other}, which is read later"
