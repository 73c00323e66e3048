"""JupyterLab, as `make lab` starts it, in a real browser: notebooks run from top to bottom in a
fresh kernel and progress bars are widgets.

JupyterLab works on a copy: the committed notebooks are not touched. Pictures are left in
`_docs/screenshots`. The tour also runs through papermill, beside the browser. `NSL_LAB=all` runs
every notebook of the library in JupyterLab (an hour),
`NSL_LAB=training/06_retrieval,nsl/03_static` those named.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from browser import listen, script
from conftest import ROOT

SCREENSHOTS = ROOT / "_docs" / "screenshots"
TRAIN = """from torch import nn
from nsl_repro.data.images import load_dataset
from nsl_repro.nsl.dynamic import DynamicNSLConv2d
from nsl_repro.training.classify import train
from nsl_repro.training.loop import make_accelerator
from nsl_repro.training.recipe import RECIPES

images, test_images = load_dataset('digits')
first = DynamicNSLConv2d(1, 8, 3, stride=2, padding=1)
net = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
result = train(
    net, images, test_images, recipe=RECIPES['clean'], steps=30, segments=2, flip=False,
    accelerator=make_accelerator('cpu'), description='digits',
)
print(sorted(result.metrics))"""
READY = script("ready")
CELLS = (
    "[...jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type == 'code' && "
    "c.sharedModel.source.trim())"
)
FAILED = (
    f"() => {CELLS}.flatMap(c => c.outputs.toJSON()).filter(o => o.output_type == 'error').map(o "
    f"=> `${{o.ename}}: ${{o.evalue}}`)"
)
ENDED = (
    f"() => {CELLS}.every(c => c.executionCount) || {CELLS}.some(c => c.outputs.toJSON().some(o "
    "=> o.output_type == 'error'))"
)


def chosen() -> list[str]:
    "The notebooks to run in JupyterLab."
    wanted = os.environ.get("NSL_LAB", "")
    known = sorted(
        p.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        for p in (ROOT / "nbs").rglob("[!_.]*.ipynb")
        if p.parent.name != "experiments"
    )
    return known if wanted == "all" else ["index", *filter(None, wanted.split(","))]


def environment(folder) -> dict[str, str]:
    "No settings but the project's own; one thread, because two things run at once."
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("NSL_PROGRESS", "JPY_SESSION_NAME", "PYTEST_CURRENT_TEST")
    }
    places = {
        f"JUPYTER_{what}_DIR": str(folder / what.lower()) for what in ("CONFIG", "DATA", "RUNTIME")
    }
    return {**env, **places, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the project's notebooks and ledger, and a small notebook that trains."
    project = tmp_path_factory.mktemp("lab") / "project"
    shutil.copytree(
        ROOT / "nbs", project / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    shutil.copytree(ROOT / "data" / "results", project / "data" / "results")
    (project / "docs").mkdir()
    files = ("settings.ini", "data/paper_results.json", "data/README.md", "docs/overview.png")
    for file in files:
        shutil.copy(ROOT / file, project / file)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAIN)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, project / "nbs" / "bar.ipynb")
    return project


@pytest.fixture(scope="module")
def papermill(project):
    """The tour through papermill, started now and looked at later: a process, and the notebook that
    it writes."""
    done = project.parent / "index.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--cwd",
        project / "nbs",
        project / "nbs" / "index.ipynb",
        done,
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment(project.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process, done
    process.kill()


@pytest.fixture(scope="module")
def lab(project):
    "JupyterLab with the options of `make lab`: its address and its token."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    command = [sys.executable, "-m", "jupyter", "lab", *lab_options(port, token)]
    look_for_no_news(project.parent / "config" / "lab")
    log = project.parent / "lab.log"
    with open(log, "w") as out:
        environ = environment(project.parent)
        process = subprocess.Popen(command, cwd=project, env=environ, stdout=out, stderr=out)
    for _ in range(600):
        with socket.socket() as probe:
            if process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    assert process.poll() is None, log.read_text()
    yield f"http://127.0.0.1:{port}", token
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def lab_options(port, token):
    "Those of `make lab`, and what a test needs."
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    target = re.search(r"(?m)^lab:.*\n\t.*jupyter lab (.*)$", makefile)
    options = shlex.split(target[1].replace("$(ARGS)", ""))
    options += ["--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    root = getattr(os, "geteuid", lambda: 1)() == 0
    return [*options, "--allow-root"] if root else options


def look_for_no_news(settings):
    "JupyterLab's news are on another host."
    folder = settings / "user-settings" / "@jupyterlab" / "apputils-extension"
    folder.mkdir(parents=True)
    text = '{"fetchNews": "false", "checkForUpdates": false}'
    (folder / "notification.jupyterlab-settings").write_text(text)


@pytest.fixture(scope="module")
def page(lab, browser):
    "A page that is logged in."
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.heard = listen(page)
    page.goto(f"{lab[0]}/?token={lab[1]}")
    yield page
    page.close()


def run_all(page, name):
    "Restart the kernel and run all cells, as a reader does it; the outputs of all cells."
    page.wait_for_function(READY, arg=f"nbs/{name}.ipynb", timeout=60_000)
    page.locator("[data-jp-item-name='restart-and-run'] >> visible=true").last.click()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.wait_for_function(f"() => !({CELLS}.some(c => c.executionCount))", timeout=30_000)
    page.wait_for_function(ENDED, timeout=600_000)
    assert page.evaluate(FAILED) == [], name
    return page.evaluate(f"() => {CELLS}.flatMap(c => c.outputs.toJSON())")


def look_at_bars(page, outputs, name) -> int:  # how many there are
    "Each bar is drawn, and none is text."
    bars = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    if bars:
        page.evaluate(script("bar"))
        drawn = page.locator(
            ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea .jupyter-widget-hprogress, "
            ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea .widget-hprogress"
        )
        drawn.first.wait_for(state="visible", timeout=10_000)
        assert drawn.first.bounding_box()["width"] > 40
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"lab-{name}.png")
    shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").last.inner_text()
    for text in ("HBox(", "Error displaying widget", "Loading widget"):
        assert text not in shown, name
    return len(bars)


@pytest.mark.parametrize("name", chosen())
def test_a_notebook_runs(page, lab, papermill, name):
    if name != "index":  # which is what `make lab` opens
        page.goto(f"{lab[0]}/lab/tree/nbs/{name}.ipynb?reset")
    outputs = run_all(page, name)
    bars = look_at_bars(page, outputs, name)
    assert outputs and bars >= (
        "JPY_SESSION_NAME" in (ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8")
    )  # it says that JupyterLab has bars


def test_a_progress_bar_is_a_widget(page, lab):
    page.goto(f"{lab[0]}/lab/tree/nbs/bar.ipynb?reset")
    outputs = run_all(page, "bar")
    assert look_at_bars(page, outputs, "bar") == 1
    assert "test_accuracy" in "".join("".join(o.get("text", "")) for o in outputs)
    assert not [w for w in page.heard if "widget" in w.lower()], page.heard


def test_the_tour_runs_through_papermill(papermill):
    process, done = papermill
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed[-3000:]
    cells = [
        cell
        for cell in json.loads(done.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    assert cells and all(cell["metadata"]["papermill"]["status"] == "completed" for cell in cells)
