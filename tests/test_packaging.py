"""The wheel, in an environment that has nothing else: it imports, it imports fast, and it brings
its experiments and its ledger."""

import os
import re
import statistics
import subprocess
import sys
import zipfile

import pytest
from conftest import COMMAND, ROOT

SLOW = (
    "import sys; print(*sorted({'torch', 'papermill', 'IPython', 'matplotlib', 'torchvision', "
    "'sklearn', 'scipy'} & set(sys.modules)))"
)

TOGETHER = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
EACH_ALONE = """
import importlib, os, sys, torch
for name in sys.argv[1:]:
    if not (child := os.fork()):  # in which no other module of the package has been imported
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def call(*command, cwd, timeout=900):
    "Run a command away from the project, and fail with everything it printed."
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "NSL_"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, so that both are complete. The build uses the pinned
    tools of this environment."""
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    "An environment with the wheel and what it needs, nothing more."
    folder = tmp_path_factory.mktemp("empty")
    call(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-compile", "-c"]  # half of it is unused
    call(*install, ROOT / "constraints.txt", wheel, cwd=folder)
    return python


def test_the_wheel_carries_experiments_and_figures(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package, pattern in [
        ("nbs/experiments", "_experiments", "[!_.]*.ipynb"),
        ("data", "_data", "*[sy].json"),  # paper_results, reliability
        ("data/results", "_data/results", "*.json"),
    ]:
        for path in (ROOT / folder).glob(pattern):
            assert f"nsl_repro/{package}/{path.name}" in names
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "nsl_repro").rglob("*.py")} <= names
    assert (
        "nsl_repro/py.typed" in names
    )  # type checkers read the annotations of packages that say so
    assert not [n for n in names if n.startswith(("tests", "data", "nbs")) or "cifar-" in n]


def test_an_installed_package_works(python, tmp_path):
    installed = call(
        python,
        "-c",
        "import nsl_repro; print(nsl_repro.__version__, nsl_repro.__file__)",
        cwd=tmp_path,
    )
    assert "site-packages" in installed
    modules = sorted(
        f"nsl_repro.{p.parent.name}.{p.stem}"
        for p in (ROOT / "nsl_repro").glob("*/[!_]*.py")
        if p.stem != "plugins"
    )
    thorough = OTHERS or os.environ.get("NSL_SOAK") == "1"  # test_imports looks at the order
    call(python, "-c", EACH_ALONE if thorough else TOGETHER, *modules, cwd=tmp_path)
    told = call(
        python,
        "-c",
        "try: import nsl_repro.pddm.plugins\nexcept ImportError as e: print(e)",
        cwd=tmp_path,
    )
    assert (
        "pip install 'nsl_repro[metric]'" in told
    )  # the one module that is nothing without an extra
    command = python.with_name("nsl-repro")
    listed = call(command, "list", cwd=tmp_path)
    for path in (ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"):
        assert path.stem in listed
    if any((ROOT / "data" / "results").glob("*.json")):
        assert call(command, "table", cwd=tmp_path).strip()
    assert "nsl-repro run" in call(command, "run", "--help", cwd=tmp_path)


OTHERS = os.environ.get("NSL_PYTHONS", "").split()  # `make package` names some


@pytest.mark.parametrize("other", OTHERS or ["none"])
def test_other_pythons_take_the_wheel(other, wheel, tmp_path):
    "An empty environment of another Python: it installs, imports, lists and prints a table."
    if not OTHERS:
        pytest.skip("NSL_PYTHONS names no other Pythons, such as 'python3.10 python3.13'")
    asked = subprocess.run([other, "--version"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"{other} is not on this machine")
    call(other, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    call(*install, cwd=tmp_path, timeout=3600)
    code = "import nsl_repro; nsl_repro.fold; print(nsl_repro.__version__, nsl_repro.__file__)"
    assert "site-packages" in call(python, "-c", code, cwd=tmp_path)
    command = python.with_name("nsl-repro")
    assert "nsl_cifar" in call(command, "list", cwd=tmp_path)
    assert call(command, "table", "nsl_cifar", "--dataset", "digits", cwd=tmp_path).strip()


MOVED = re.findall(
    r"(?m)^\| `(\w+)` \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
)


def test_the_migration_note_names_modules_that_exist():
    import importlib.util

    assert len(MOVED) == 28
    for before, now in MOVED:
        assert importlib.util.find_spec(f"nsl_repro.{before}") is None or before in WINGS
        for module in re.findall(r"`(\w+\.\w+)`", now):
            assert importlib.util.find_spec(f"nsl_repro.{module}"), module


WINGS = {"data", "kernels", "pddm", "results", "training"}  # folders that have an old module's name


def test_running_without_papermill_says_what_to_install(python, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [
        python.with_name("nsl-repro"),
        "run",
        "nsl_cifar",
        "-p",
        "dataset=digits",
        "-o",
        tmp_path / "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'nsl_repro[run]'" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_an_experiment_runs_from_the_wheel(wheel, tmp_path):
    """From an empty directory, with the packages of this environment. Results go where the user
    stands, beside them the table shows the published runs that the wheel has brought."""
    call(sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site-packages", cwd=tmp_path)
    here = tmp_path / "empty"
    here.mkdir()
    env = dict(os.environ, PYTHONPATH=str(tmp_path / "site-packages"), HOME=str(tmp_path / "home"))

    def run(*words):
        done = subprocess.run([*COMMAND, *words], cwd=here, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    where = [sys.executable, "-c", "import nsl_repro; print(nsl_repro.__file__)"]
    found = subprocess.run(where, cwd=here, env=env, capture_output=True, text=True).stdout
    assert found.startswith(str(tmp_path / "site-packages"))
    done = run("run", "nsl_cifar", "-p", "preset=smoke", "-p", "methods=cnn,static_dns")
    assert f"not in the project's folder: results go to {here / 'data'}" in done.stderr
    assert "static DNS" in done.stdout and len([*here.glob("data/runs/*/entry.json")]) == 2
    told = run("table", "nsl_cifar", "--dataset", "digits").stdout
    assert "preset smoke" in told and "preset quick" in told
    assert [p.name for p in here.iterdir()] == ["data"]
    assert not (tmp_path / "site-packages" / "data").exists()


def test_import_is_quick(python, tmp_path):
    code = (
        "import torch, time; start = time.perf_counter(); import nsl_repro; "
        "print(time.perf_counter() - start)"
    )
    seconds = statistics.median(float(call(python, "-c", code, cwd=tmp_path)) for _ in range(5))
    assert seconds <= 0.2, f"import nsl_repro costs {seconds:.3f} s over import torch"


def test_help_needs_no_torch(python, tmp_path):
    assert call(python, "-c", f"import nsl_repro.command.cli; {SLOW}", cwd=tmp_path).split() == []


def test_readme_names_the_two_commands_before_all_others():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = text.split("```sh")[1].splitlines()
    assert [line.split("#")[0].strip() for line in commands[1:3]] == ["make reproduce", "make test"]


def test_one_version():
    import nsl_repro

    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    assert f"\nversion = {nsl_repro.__version__}\n" in settings
    assert f"## {nsl_repro.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {nsl_repro.__version__}" in (ROOT / "CITATION.cff").read_text(
        encoding="utf-8"
    )
