"""Every experiment at smoke on a GPU, as its cells stand: no kernel, papermill or JupyterLab is
needed for that. Without a GPU one of them runs on the CPU, so that this way of running stays whole.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

CUDA = torch.cuda.is_available()
NOTEBOOKS = sorted((ROOT / "nbs" / "experiments").glob("nsl_*.ipynb"))
NOTEBOOKS += sorted((ROOT / "nbs" / "experiments").glob("[bp]*.ipynb"))

# what runs in a process of its own: the notebook's code cells, with some parameters replaced
RUN = """
import json, sys, types, warnings
import matplotlib
matplotlib.use("Agg")
warnings.simplefilter("ignore")
try:
    import IPython.display
except ImportError:  # nothing is looked at
    display = types.ModuleType("IPython.display")
    display.display = lambda *a, **k: None
    display.Markdown = display.HTML = display.SVG = str
    sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), display
notebook, values = sys.argv[1], json.loads(sys.argv[2])
space = {"__name__": "__main__"}
for cell in json.load(open(notebook, encoding="utf-8"))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code" or source.startswith("#| hide"):
        continue
    exec(compile(source, notebook, "exec"), space)
    if "parameters" in cell["metadata"].get("tags", []):
        space.update({name: value for name, value in values.items() if name in space})
"""


def by_its_cells(notebook: Path, output: Path, **values) -> subprocess.CompletedProcess:
    values = dict(preset="smoke", output=str(output), resume=False) | values
    env = dict(os.environ, NSL_PROGRESS="off", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-c", RUN, str(notebook), json.dumps(values)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


def recorded(output: Path) -> list[dict]:
    return [json.loads(f.read_text()) for f in (output / "runs").glob("*/entry.json")]


@pytest.mark.skipif(not CUDA, reason="torch sees no CUDA device")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[n.stem for n in NOTEBOOKS])
def test_an_experiment_on_a_gpu(notebook, tmp_path):
    done = by_its_cells(notebook, tmp_path, device="cuda")
    if "needs a package that is not installed" in done.stderr or "No module named" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    assert recorded(tmp_path), "nothing was recorded"


@pytest.mark.skipif(not CUDA, reason="torch sees no CUDA device")
@pytest.mark.parametrize("experiment", ["pddm_retrieval", "pddm_ablation"])
@pytest.mark.parametrize("dataset", ["cub", "cars"])
def test_photographs_on_a_gpu(dataset, experiment, tmp_path):
    from nsl_repro.data.sources import DataNotFound, check_files

    try:
        check_files(dataset, os.environ.get("NSL_DATA"))
    except DataNotFound as e:
        pytest.skip(str(e))
    values = dict(dataset=dataset, device="cuda", data_root=os.environ.get("NSL_DATA", ""))
    done = by_its_cells(ROOT / f"nbs/experiments/{experiment}.ipynb", tmp_path, **values)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_cells_run_without_a_kernel(tmp_path):
    "On a CPU; what is recorded is what a kernel would record."
    notebook = ROOT / "nbs" / "experiments" / "nsl_cifar.ipynb"
    done = by_its_cells(notebook, tmp_path, device="cpu", methods=["cnn", "dynamic_uns"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert {e["method"] for e in recorded(tmp_path)} == {"cnn", "dynamic_uns"}
    assert all(e["parameters"]["variant"] == "paper" for e in recorded(tmp_path))
