"""What the tests share: the project's folder, the command as a user types it, small notebooks to
run it on, and the figures that tests/reliability measures."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import forks
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from nsl_repro.command.cli import main; main()"]


def new_interpreter(*args, cwd=ROOT, timeout=300, **environment):
    "Run the command `nsl-repro` as a shell does it."
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=timeout,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def nsl_repro(tmp_path_factory):
    """Run the command `nsl-repro` in a process of its own, in the project's folder unless told
    otherwise. It is forked from one that has imported everything, where that can be."""
    if not forks.WATCHES:
        yield new_interpreter
        return
    server = forks.Server(tmp_path_factory.mktemp("forks"))

    def run(*args, cwd=ROOT, timeout=300, **environment):
        env = {**os.environ, **environment}
        return server.command(list(map(str, args)), cwd, timeout, env)

    yield run
    server.close()


@pytest.fixture(scope="session")
def browser():
    "One for all files of a worker: Playwright starts only once in a process."
    from browser import chromium  # only the tests of the site and of JupyterLab need Playwright

    with chromium() as found:
        yield found


@pytest.fixture
def notebook(tmp_path):
    "Write a notebook whose first code cell is the parameters cell."

    def write(name, *cells):
        nb = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell(f"# {name}\n\n> A notebook called {name}.")]
        )
        nb.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        nb.cells[1].metadata.tags = ["parameters"]
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return write


FOUND = pytest.StashKey[dict]()  # test -> figures


def found(item):
    return item.config.stash.setdefault(FOUND, {}).setdefault(f"{item.path.name}::{item.name}", {})


@pytest.fixture
def measured(request):
    "Keep figures of this test, by name: numbers, or short texts."
    return lambda **figures: found(request.node).update(figures)


ONE_BY_ONE = (  # long, and any worker may take the next of them
    "test_experiments.py",
    "test_the_rehearsal",
    "test_no_page_has_anything_wrong",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "The tests of a file share their fixtures, so that one worker runs them all; many ones first."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if any(name in nodeid for name in ONE_BY_ONE) else nodeid.split("::")[0]

    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and item.path.parent.name == "reliability":
        found(item).update(outcome=report.outcome, seconds=round(report.duration, 1))
    return report


def still_there(test):
    "Whether a recorded test (`file::name[case]`) still exists."
    file, name = test.split("::")
    text = (ROOT / "tests" / "reliability" / file).read_text(encoding="utf-8")
    return f"def {name.split('[')[0]}(" in text


def keep(path, tests):
    "Put the figures of these tests into the record; what was there of the same tests is replaced."
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    run = dict(commit=commit, date=time.strftime("%Y-%m-%d"))
    run |= dict(python=platform.python_version(), cores=os.cpu_count())
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    section = record.setdefault("long" if os.environ.get("NSL_SOAK") else "fast", {})
    again = {test.split("[")[0] for test in tests}  # all of their cases are new
    for test in [test for test in section if test.split("[")[0] in again]:
        del section[test]
    section.update({test: figures | run for test, figures in tests.items()})
    for kind, section in record.items():
        record[kind] = {test: section[test] for test in sorted(section) if still_there(test)}
    text = json.dumps(dict(sorted(record.items())), indent=1)
    path.write_text(f"{text}\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter, config):
    """Print what tests/reliability measured. With NSL_RECORD=FILE the figures also go into that
    file, for nbs/reliability; what NSL_SOAK=1 measures has a section of its own there."""
    tests = config.stash.get(FOUND, {})
    for test, figures in sorted(tests.items()):
        shown = []
        for name, value in figures.items():
            if name not in ("outcome", "seconds"):
                shown.append(
                    f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                )
        if shown:
            terminalreporter.write_line(f"{test}: {', '.join(shown)}")
    if tests and (file := os.environ.get("NSL_RECORD")):
        keep(Path(file), tests)
