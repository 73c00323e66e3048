"""What the tests share: the project's folder, the command as a user types it, and small notebooks to run it on."""
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from nsl_repro.runner import main; main()"]


@pytest.fixture(scope="session")
def nsl_repro():
    "Run the command `nsl-repro` in a process of its own, in the project's folder unless told otherwise."

    def run(*args, cwd=ROOT, timeout=300, **environment):
        env = {**os.environ, **environment}
        return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True)

    return run


@pytest.fixture
def notebook(tmp_path):
    "Write a notebook whose first code cell is the parameters cell."

    def write(name, *cells):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}\n\n> A notebook called {name}.")])
        nb.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        nb.cells[1].metadata.tags = ["parameters"]
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return write
