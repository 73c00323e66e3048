"""Every notebook can be opened in Google Colab: its badge leads to it, and its install cell asks
for what the notebooks need."""

import ast
import copy
import importlib.util
import json
import shlex
import subprocess
import sys
from importlib.metadata import Distribution

import pytest
from conftest import ROOT
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

spec = importlib.util.spec_from_file_location("colab", ROOT / "docs" / "colab.py")
colab = importlib.util.module_from_spec(spec)
spec.loader.exec_module(colab)
IMPORTED_AS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "IPython": "ipykernel",
    "nbformat": "papermill",
    "nbclient": "papermill",
    "jupyter_client": "ipykernel",
    "safetensors": "accelerate",
    "faiss": "faiss-cpu",
    "ot": "POT",
    "skimage": "scikit-image",
    "triton": "torch",
    "transformers": "sentence-transformers",
}  # module -> what brings it, where they differ


def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(nb):
    return ["".join(cell["source"]) for cell in nb["cells"]]


def test_every_notebook_has_its_badge_and_install_cell():
    for path in colab.notebooks():
        assert not colab.prepare(notebook(path), path.relative_to(ROOT).as_posix()), (
            f"{path.name}: run `python docs/colab.py`"
        )


def test_inserting_keeps_everything_else_and_is_done_once():
    for path in colab.notebooks():
        nb = notebook(path)
        file = path.relative_to(ROOT).as_posix()
        bare = copy.deepcopy(nb)
        if "COLAB_RELEASE_TAG" in sources(nb)[1]:  # as it was before
            del bare["cells"][1]
            bare["cells"][0]["source"] = (
                "".join(bare["cells"][0]["source"])
                .partition("\n\n[![Open in Colab]")[0]
                .splitlines(keepends=True)
            )
        done = copy.deepcopy(bare)
        assert colab.prepare(done, file) and not colab.prepare(copy.deepcopy(done), file)
        title, install = sources(done)[:2]
        assert (
            title.startswith(sources(bare)[0])
            and title.endswith(f"({colab.colab_url(file)})")
            and file in title
            and install == colab.INSTALL
        )
        assert done["cells"][2:] == bare["cells"][1:] and {
            k: v for k, v in done.items() if k != "cells"
        } == {k: v for k, v in bare.items() if k != "cells"}
        assert done["cells"][1]["id"] not in {cell["id"] for cell in bare["cells"]}


def run_cell(monkeypatch, **environment) -> list[tuple[str, str]]:
    "Execute the install cell as a notebook does; the magics that it called."
    called = []

    class Shell:
        def run_line_magic(self, name, line):
            called.append((name, line))

    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exec(TransformerManager().transform_cell(colab.INSTALL), {"get_ipython": Shell})
    return called


def test_the_cell_does_nothing_here(monkeypatch):
    assert run_cell(monkeypatch) == []


def test_in_colab_the_cell_installs_this_project(monkeypatch):
    [(magic, line)] = run_cell(monkeypatch, COLAB_RELEASE_TAG="release-colab-20260101")
    *command, requirement = shlex.split(line)
    wanted = Requirement(requirement)
    settings = dict(
        line.split(" = ", 1)
        for line in (ROOT / "settings.ini").read_text(encoding="utf-8").splitlines()
        if " = " in line
    )
    assert magic == "pip" and command == ["install", "-q"] and wanted.name == settings["lib_name"]
    assert (
        wanted.url == f"git+https://github.com/{settings['user']}/{settings['repo']}"
        and wanted.extras == {"notebooks"}
    )


@pytest.fixture(scope="module")
def needs(tmp_path_factory):
    "What pip would install for the notebooks, by its names, from the project as it is."
    folder = tmp_path_factory.mktemp("metadata")
    code = (
        "import setuptools.build_meta as b, sys; "
        "print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = Distribution.at(next(folder.glob("*.dist-info")))
    assert "notebooks" in found.metadata.get_all("Provides-Extra")
    every = [Requirement(r) for r in found.requires]
    return {r.name for r in every if r.marker is None or r.marker.evaluate({"extra": "notebooks"})}


def test_the_extra_has_all_that_the_notebooks_import(needs):
    transform = TransformerManager().transform_cell
    provided = (
        {name.replace("-", "_") for name in needs} | {"nsl_repro"} | set(sys.stdlib_module_names)
    )
    for path in colab.notebooks():
        for cell in notebook(path)["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.startswith("%%"):
                continue
            for node in ast.walk(ast.parse(transform(source))):
                modules = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
                for module in (m.partition(".")[0] for m in modules):
                    assert IMPORTED_AS.get(module, module).replace("-", "_") in provided, (
                        f"{path.name} imports {module}, which nsl_repro[notebooks] does not bring"
                    )
