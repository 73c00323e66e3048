"""The notebooks are clean, and the library is what they export."""

import ast
import difflib
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

REMEDY = "run `make notebooks` and commit what it changed"


def nbdev(command, folder):
    "Run one of nbdev's commands in a folder."
    done = subprocess.run(
        [Path(sys.executable).with_name(command)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed\n{done.stderr}"


def files(folder):
    "Notebooks and modules, by their path in the project."
    found = [*(folder / "nbs").rglob("*.ipynb"), *(folder / "nsl_repro").rglob("*.py")]
    return {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8")
        for p in found
        if ".ipynb_checkpoints" not in p.parts
    }


@pytest.fixture
def copy(tmp_path):
    "The project's settings, notebooks and library in a folder of their own."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for part in ("nbs", "nsl_repro"):
        shutil.copytree(
            ROOT / part,
            tmp_path / part,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    return tmp_path


def differences(before, after):
    "The first lines of what differs, or nothing."
    text = []
    for name in sorted(before | after):
        a, b = before.get(name, ""), after.get(name, "")
        text += difflib.unified_diff(
            a.splitlines(),
            b.splitlines(),
            f"committed/{name}",
            f"regenerated/{name}",
            n=0,
            lineterm="",
        )
    return "\n".join(line[:200] for line in text[:60])


def test_notebooks_are_clean(copy):
    before = files(copy)
    nbdev("nbdev_clean", copy)
    assert not (diff := differences(before, files(copy))), (
        f"notebooks are not clean: {REMEDY}\n{diff}"
    )


def test_library_is_what_the_notebooks_export(copy):
    before = files(copy)
    for module in (copy / "nsl_repro").rglob(
        "*.py"
    ):  # a module whose notebook is gone must not survive
        if module.name != "__init__.py" or module.parent.name != "nsl_repro":
            module.unlink()
    nbdev("nbdev_export", copy)
    assert not (diff := differences(before, files(copy))), (
        f"the library is not what the notebooks export: {REMEDY}\n{diff}"
    )


def test_what_the_package_offers_is_there():
    import nsl_repro

    tree = ast.parse(Path(nsl_repro.__file__).read_text(encoding="utf-8"))
    said = {
        name.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in node.names
    }
    assert said == nsl_repro._HOMES, "for type checkers and at run time, the same names"
    for name, module in nsl_repro._HOMES.items():
        assert getattr(nsl_repro, name) is getattr(
            importlib.import_module(f"nsl_repro.{module}"), name
        ) and name in dir(nsl_repro)


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    """nbdev_clean deletes cell tags unless settings.ini says otherwise; without the tag papermill
    has nowhere to put values."""
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "nbs").mkdir()
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "x: int = 1", metadata={"tags": ["parameters"], "collapsed": True}
            )
        ]
    )
    nbformat.write(nb, tmp_path / "nbs" / "one.ipynb")
    nbdev("nbdev_clean", tmp_path)
    metadata = nbformat.read(tmp_path / "nbs" / "one.ipynb", 4).cells[0].metadata
    assert metadata == {"tags": ["parameters"]}, (
        "settings.ini must say allowed_cell_metadata_keys = tags"
    )


@pytest.mark.parametrize(
    "path", sorted(Path(ROOT, "nbs").rglob("[!_.]*.ipynb")), ids=lambda p: p.stem
)
def test_notebook_is_executed_and_small(path):
    "Readers see outputs without running anything, and no page is heavy."
    if ".ipynb_checkpoints" in path.parts:
        pytest.skip("not a page")
    nb = nbformat.read(path, 4)
    first = nb.cells[0].source
    assert first.startswith("# ") and "\n> " in first, (
        "the first cell must be `# Title` and a line `> what and why`"
    )
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"a committed output is an error: {output.ename}"
            assert len(str(output)) < 140_000, (
                f"an output is over 100 kB (base64 included): {cell.source[:60]}"
            )


@pytest.mark.parametrize(
    "path", sorted(Path(ROOT, "nbs").rglob("[0-9]*.ipynb")), ids=lambda p: p.stem
)
def test_no_two_exported_cells_with_nothing_between(path):
    exported = [
        cell.cell_type == "code" and cell.source.startswith("#| export")
        for cell in nbformat.read(path, 4).cells
    ]
    assert not any(a and b for a, b in zip(exported, exported[1:])), (
        "a sentence, a picture or a test must stand between two exported cells"
    )


def stored_outputs():
    "What every notebook shows: its path, the kind and the text of each output."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                kinds = {"text": output["text"]} if "text" in output else output.get("data", {})
                for kind, text in kinds.items():
                    if isinstance(text, str):
                        yield path.relative_to(ROOT).as_posix(), kind, text


def test_outputs_name_no_machine():
    "Nor do they hold warnings of other packages, which come with their place on the disk."
    elsewhere = re.compile(r"site-packages|ipykernel_\d|/home/|/root/|" + re.escape(str(ROOT)))
    texts = ((path, text) for path, kind, text in stored_outputs() if kind.startswith("text"))
    assert not [(path, text[:200]) for path, text in texts if elsewhere.search(text)]


def test_outputs_are_small():
    "100 kB at most; pictures are stored in base64, four letters for three bytes."
    sizes = []
    for path, kind, text in stored_outputs():
        sizes.append((path, kind, len(text) * 3 // 4 if kind == "image/png" else len(text)))
    assert not [found for found in sizes if found[2] > 100_000]
