"""The runner as a user meets it: the command in a process of its own, and every fault that can be
provoked."""

import signal
import subprocess
import time

import nbformat
import psutil
import pytest
from conftest import COMMAND, ROOT, new_interpreter

PARAMETERS = (
    "dataset: str = 'digits'  # what to learn from\nseeds: list[int] = [0]  # one run "
    "each\ndata_root: str = ''\ndownload: bool = False"
)


@pytest.fixture
def nsl_repro():
    "Nothing is spared here: what is started is what is tested."
    return new_interpreter


def test_run_keeps_the_executed_notebook(nsl_repro, notebook, tmp_path):
    toy = notebook(
        "toy",
        PARAMETERS,
        "import sys; print('seeds', seeds); print('bar 1\\rbar 2\\n', file=sys.stderr)",
    )
    done = nsl_repro("run", toy, "-p", "seeds=1,2", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "seeds [1, 2]\n"
    path = done.stderr.split("executed notebook: ")[1].strip()
    assert path.startswith(str(tmp_path / "runs" / "toy-digits-"))
    outputs = nbformat.read(path, 4).cells[-1].outputs
    assert [o.text for o in outputs if o.name == "stderr"] == ["bar 2\n\n"]


def test_a_foreign_kernel_called_python3_is_not_used(nsl_repro, notebook, tmp_path):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "another", "language": "python"}'
    )
    toy = notebook("toy", PARAMETERS, "import sys; print(sys.executable)")
    done = nsl_repro("run", toy, "-o", tmp_path, JUPYTER_PATH=str(tmp_path / "jupyter"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == COMMAND[0]


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        (
            ["-p", "sedes=1"],
            2,
            "toy has no parameter 'sedes', did you mean 'seeds'? It has dataset, seeds, "
            "data_root, download.",
        ),
        (["-p", "seeds=one"], 2, "seeds must be list[int], got 'one' ('one' is not)."),
        (["-p", "download=perhaps"], 2, "download must be bool, got 'perhaps'."),
        (["-p", "seeds"], 2, "a parameter must be given as name=value, got 'seeds'."),
        (["-p", "dataset=imagenette"], 2, "imagenette"),
        (["-p", "dataset=cifar10", "-p", "data_root={tmp}/nowhere"], 3, "{tmp}/nowhere"),
    ],
)
def test_refused_before_anything_starts(nsl_repro, notebook, tmp_path, arguments, status, sentence):
    toy = notebook("toy", PARAMETERS, "raise SystemExit('it started')")
    done = nsl_repro(
        "run", toy, "-o", tmp_path / "out", *[a.format(tmp=tmp_path) for a in arguments]
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("nsl-repro: ") and len(done.stderr.strip().splitlines()) == 1, (
        done.stderr
    )
    assert sentence.format(tmp=tmp_path) in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_data_names_path_remedy_and_alternative(nsl_repro, notebook, tmp_path):
    toy = notebook("toy", PARAMETERS, "print('it started')")
    done = nsl_repro(
        "run", toy, "-p", "dataset=cifar10", "-o", tmp_path, NSL_DATA=str(tmp_path / "empty")
    )
    assert done.returncode == 3
    for word in (str(tmp_path / "empty"), "download=true", "digits"):
        assert word in done.stderr, f"the sentence does not name {word}: {done.stderr}"
    assert "it started" not in done.stdout and "Traceback" not in done.stderr


def test_data_that_turns_out_to_be_missing(nsl_repro, notebook, tmp_path):
    toy = notebook(
        "toy",
        "x: int = 0",
        "from nsl_repro.data.sources import DataNotFound; raise DataNotFound('it is not here')",
    )
    done = nsl_repro("run", toy, "-o", tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, "nsl-repro: it is not here")


def test_a_failing_cell(nsl_repro, notebook, tmp_path):
    done = nsl_repro("run", notebook("toy", "x: int = 0", "1 / x"), "-o", tmp_path)
    assert done.returncode == 1
    first, second = done.stderr.strip().splitlines()
    assert first == "nsl-repro: toy failed in cell [2]: ZeroDivisionError: division by zero"
    executed = nbformat.read(second.removeprefix("executed notebook: "), 4)
    assert any(o.output_type == "error" for cell in executed.cells for o in cell.get("outputs", []))


def test_a_dead_kernel(nsl_repro, notebook, tmp_path):
    dying = notebook(
        "dying",
        "x: int = 0",
        "print('before')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    )
    done = nsl_repro("run", dying, "-o", tmp_path)
    assert done.returncode == 4
    assert "the kernel of dying died" in done.stderr and "Traceback" not in done.stderr
    executed = nbformat.read(done.stderr.strip().split("executed notebook: ")[1], 4)
    assert executed.cells[2].outputs[0].text == "before\n"


def alive(pid):
    "Whether a process is there and not merely waiting to be buried."
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "how, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_no_kernel_outlives_its_runner(notebook, tmp_path, how, status):
    sleepy = notebook(
        "sleepy", "x: int = 0", "import os, time; print(os.getpid(), flush=True); time.sleep(120)"
    )
    runner = subprocess.Popen(
        [*COMMAND, "run", str(sleepy), "-o", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs inherit an ignored SIGINT
    )
    try:
        kernel = int(runner.stdout.readline())
        runner.send_signal(how)
        runner.wait(timeout=30)
        for _ in range(100):
            if not alive(kernel):
                break
            time.sleep(0.1)
        assert not alive(kernel), "the kernel is still there"
        assert runner.returncode == status, runner.stderr.read()
    finally:
        runner.kill()
        runner.communicate()
