"""The command line as people get it wrong: a table of mistakes, each answered by one sentence; then
completion, pipes and interruptions."""

import os
import subprocess
import sys

import nbformat
import pytest
from conftest import COMMAND, ROOT
from typer.testing import CliRunner

import nsl_repro
from nsl_repro.command import cli
from nsl_repro.results.ledger import new_entry, write_entry


def invoke(*args):
    "Run the command in this process: exit status, standard output, error stream."
    result = CliRunner().invoke(cli.app, [str(a) for a in args], prog_name="nsl-repro")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(
        result.exception
    )
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with whatever can be pointed at by mistake."
    tmp = tmp_path_factory.mktemp("place")
    write_notebooks(tmp)
    write_ledgers(tmp)
    write_data(tmp / "data")
    (tmp / "file").write_text("a file")
    return tmp


TOY = """\
dataset: str = 'digits'
seeds: list[int] = [0]
lr: float = 0.1
data_root: str = ''
output: str = ''
download: bool = False"""


def write_notebooks(folder):
    "One that must not start, some that cannot, and what is no notebook."
    cells = {
        "toy": [TOY, "raise SystemExit('it started')"],
        "untagged": ["x: int = 1"],
        "computed": ["x: int = 2 * 3"],
    }
    for name, sources in cells.items():
        nb = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
        nb.cells[0].metadata.tags = ["parameters"] if name != "untagged" else []
        nbformat.write(nb, folder / f"{name}.ipynb")
    (folder / "page.ipynb").write_text("<html>404</html>")
    (folder / "folder.ipynb").mkdir()


def write_ledgers(folder):
    "A good ledger, and some with a damaged entry."
    run = dict(experiment="toy", dataset="digits", preset="smoke", seed=0, parameters={"lr": 0.1})
    run |= dict(metrics={"test_accuracy": 90.0}, curves={}, wall_time_s=1.0, device="cpu")
    for method in ("cnn", "static_dns"):
        write_entry(new_entry(method=method, **run), folder / "ledger")
    entry = next((folder / "ledger" / "results").iterdir()).read_text()
    damaged = {
        "cut": entry[:80].encode(),
        "schema": entry.replace('"schema": 1', '"schema": 7').encode(),
        "list": b"[]",
        "binary": b"\xff\xfe\x00",
    }
    for name, content in damaged.items():
        (folder / name / "results").mkdir(parents=True)
        (folder / name / "results" / "toy__x.json").write_bytes(content)


def write_data(folder):
    "Data sets that are damaged or not complete."
    from PIL import Image

    cifar = folder / "cifar-10-batches-py"
    cifar.mkdir(parents=True)
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (cifar / file).write_bytes(b"cos\nsystem\n")
    (folder / "cifar-100-python").mkdir()
    (folder / "cifar-100-python" / "train").touch()
    birds = folder / "CUB_200_2011"
    rows = [(i + 1, f"{i // 2}.bird/{i}.jpg") for i in range(4)]
    for _, name in rows:
        (birds / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 40), 50).convert("RGB").save(birds / "images" / name)
    last = birds / "images" / rows[3][1]
    last.write_bytes(last.read_bytes()[:300])
    (birds / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in rows))
    (birds / "image_class_labels.txt").write_text("".join(f"{i} {(i + 1) // 2}\n" for i, _ in rows))
    (birds / "bounding_boxes.txt").write_text("".join(f"{i} 0 0 60 40\n" for i, _ in rows))
    (birds / "classes.txt").write_text("1 a\n2 b\n")


MISTAKES = [
    # what was typed (paths in braces are in the folder above), exit status, a part of the sentence
    ("rum nsl_cifar", 2, "No such command 'rum'"),
    ("--nonsense", 2, "No such option: --nonsense"),
    ("run", 2, "Missing argument 'NAME' (see nsl-repro run --help)"),
    ("run nsl_cifr", 2, "there is no experiment 'nsl_cifr', did you mean 'nsl_cifar'?"),
    ("run ''", 2, "there is no experiment ''"),
    ("run {}/absent.ipynb", 2, "there is no file {}/absent.ipynb"),
    ("run {}/folder.ipynb", 2, "there is no file {}/folder.ipynb"),
    ("run {}/page.ipynb", 2, "{}/page.ipynb must be a notebook, got something else"),
    ("run {}/untagged.ipynb", 2, "must have exactly one cell tagged 'parameters', got 0."),
    ("run {}/computed.ipynb", 2, "must be `name: type = literal  # help`, got `x: int = 2 * 3`."),
    ("run nsl_cifar more", 2, "unexpected extra argument"),
    ("run nsl_cifar -p", 2, "requires an argument"),
    ("run {}/toy.ipynb -p sedes=1", 2, "toy has no parameter 'sedes', did you mean 'seeds'?"),
    ("run {}/toy.ipynb -p seeds", 2, "a parameter must be given as name=value, got 'seeds'."),
    ("run {}/toy.ipynb -p =1", 2, "a parameter must be given as name=value, got '=1'."),
    ("run {}/toy.ipynb -p lr=1 -p lr=2", 2, "parameter 'lr' must be given once"),
    ("run {}/toy.ipynb -p seeds=one", 2, "seeds must be list[int], got 'one'"),
    ("run {}/toy.ipynb -p lr=nan", 2, "lr must be float, got 'nan'."),
    ("run {}/toy.ipynb -p download=perhaps", 2, "download must be bool, got 'perhaps'."),
    (
        "run nsl_cifar -p preset=papr",
        2,
        "preset must be one of smoke, quick, small, paper, got 'papr', did you mean 'paper'?",
    ),
    (
        "run {}/toy.ipynb -p dataset=imagenette",
        2,
        "dataset must be one of digits, cifar10, cifar100, cub, cars, mini_imagenet, imagenet, "
        "got 'imagenette'",
    ),
    (
        "run {}/toy.ipynb -p dataset=cifar10 -p data_root={}/nowhere",
        3,
        "cifar10 was not found at {}/nowhere/cifar-10-batches-py",
    ),
    (
        "run {}/toy.ipynb -p dataset=cifar10 -p data_root={}/file",
        3,
        "cifar10 was not found at {}/file",
    ),
    (
        "run {}/toy.ipynb -p dataset=cifar10 -p data_root={}/data",
        3,
        "is damaged, the md5 of data_batch_1",
    ),
    (
        "run {}/toy.ipynb -p dataset=cars -p data_root={}/nowhere -p download=true",
        3,
        "its original host is gone",
    ),
    ("run {}/toy.ipynb -o {}/file", 2, "{}/file"),
    ("run {}/toy.ipynb -o {}/file/below", 2, "{}/file"),
    ("run {}/toy.ipynb -o one -p output=other", 2, "output must be given once"),
    ("list nsl_cifr", 2, "did you mean 'nsl_cifar'?"),
    ("list --results -o {}/nowhere", 2, "the ledger has no result; nsl-repro run makes some"),
    (
        "list --results zebra -o {}/ledger",
        2,
        "the ledger has no result whose name begins with 'zebra'",
    ),
    ("list --results -v -o {}/cut", 2, "toy__x.json is not valid JSON"),
    ("table zebra -o {}/ledger", 2, "the ledger has no result with experiment zebra"),
    ("table --preset papr -o {}/ledger", 2, "the ledger has no result with preset papr"),
    ("table -p lr=1 -o {}/ledger", 2, "NAME must be given with --parameter"),
    ("table nsl_cifar -p rate=1 -o {}/ledger", 2, "nsl_cifar has no parameter 'rate'"),
    ("table -o {}/cut", 2, "toy__x.json is not valid JSON"),
    ("table -o {}/binary", 2, "toy__x.json is not valid JSON"),
    ("table -o {}/list", 2, "toy__x.json is not valid"),
    ("table -o {}/schema", 2, "toy__x.json is not valid: schema"),
    ("compare toy__digits__smoke__cnn -o {}/ledger", 2, "Missing argument 'B'"),
    (
        "compare toy__digits__smoke__cmm__seed0 toy -o {}/ledger",
        2,
        "begins with it, did you mean toy__digits__smoke__cnn__seed0__",
    ),
    (
        "compare toy toy -o {}/ledger",
        2,
        "toy must be the name of one entry of the ledger, or its beginning, but these 2 begin "
        "with it",
    ),
    (
        "compare '' toy__digits__smoke__cnn -o {}/ledger",
        2,
        "'' must be the name of one entry of the ledger",
    ),
    (
        "compare {}/absent.json toy -o {}/ledger",
        2,
        "absent must be the name of one entry of the ledger",
    ),
    ("compare {}/cut/results/toy__x.json toy -o {}/ledger", 2, "toy__x.json is not valid JSON"),
    (
        "publish zebra -o {}/ledger",
        2,
        "'zebra' must begin the names of unpublished runs of yours, got none.",
    ),
    ("publish", 2, "Missing argument 'NAME...'"),
    ("data lst", 2, "No such command 'lst'. Did you mean 'list'? (see nsl-repro data --help)"),
    (
        "data list --root {}/file",
        2,
        "the data root must be a folder, got {}/file, which is a file.",
    ),
    ("data describe", 2, "Missing argument 'NAME'"),
    ("data describe mnist", 2, "dataset must be one of digits"),
    ("data get ''", 2, "dataset must be one of digits"),
    ("data get cars --root {}/nowhere", 3, "its original host is gone"),
    (
        "data get imagenet --force --root {}/nowhere",
        3,
        "given out on request at https://www.image-net.org",
    ),
    ("data get cifar10 --root /proc/nowhere", 3, "cifar10 could not be brought to /proc/nowhere"),
    ("data check mnist", 2, "dataset must be one of digits"),
    ("data check cub --root {}/nowhere", 3, "cub was not found at {}/nowhere/CUB_200_2011"),
    ("data check cifar10 --root {}/data", 3, "cifar10 is damaged (see above)"),
    ("data check cifar100 --root {}/data", 3, "cifar100 is incomplete"),
    ("data check cub --root {}/data", 3, "cub is damaged"),
]


@pytest.mark.parametrize("typed, status, sentence", MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_sentence(place, monkeypatch, typed, status, sentence):
    monkeypatch.setenv("NSL_PROGRESS", "off")
    code, out, err = invoke(
        *("" if word == "''" else word.replace("{}", str(place)) for word in typed.split())
    )
    assert code == status, err
    assert sentence.replace("{}", str(place)) in err
    assert err.startswith("nsl-repro: ") and len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in out + err and "it started" not in out
    assert not (place / "one").exists() and not (place / "nowhere").exists()


def test_check_names_every_wrong_file(place, monkeypatch):
    monkeypatch.setenv("NSL_PROGRESS", "off")
    _, out, _ = invoke("data", "check", "--root", place / "data")
    lines = out.splitlines()
    assert lines[0] == "digits: whole"
    assert any("CUB_200_2011/images/1.bird/3.jpg cannot be decoded" in line for line in lines)
    assert any("data_batch_1, data_batch_2" in line for line in lines) and any(
        "test, meta missing" in line for line in lines
    )


def test_a_missing_package_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    code, _, err = invoke("run", place / "toy.ipynb", "-o", place / "out")
    assert (code, err) == (
        2,
        "nsl-repro: running an experiment needs papermill: pip install 'nsl_repro[run]'\n",
    )


def test_interrupted(monkeypatch):
    def impatient(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "execute", impatient)
    assert invoke("run", "nsl_cifar") == (130, "", "nsl-repro: interrupted\n")


def test_a_bug_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "execute", lambda *_: 1 / 0)
    result = CliRunner().invoke(cli.app, ["run", "nsl_cifar"], prog_name="nsl-repro")
    assert isinstance(result.exception, ZeroDivisionError)


def shell(line, **environment):
    "A line for bash, with nsl-repro as a function."
    command = (
        f'nsl() {{ "{COMMAND[0]}" -c "from nsl_repro.command.cli import main; main()" "$@"; '
        f"}}; set -o pipefail; {line}"
    )
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_pipes_and_terminals():
    """A reader who leaves, a disk that is full, no input, a terminal that knows no letters but
    ASCII."""
    done = shell(
        "nsl list --results | head -n 1; echo $?; nsl list > /dev/full; echo $?; "
        "PYTHONIOENCODING=ascii nsl --version < /dev/null 2>&1"
    )
    lines = done.stdout.splitlines()
    assert lines[1] in ("0", "141"), done.stdout  # 0 if all of it fitted into the pipe
    assert lines[2:] == ["5", f"nsl-repro {nsl_repro.__version__}"]
    assert done.stderr == "nsl-repro: [Errno 28] No space left on device\n"


def test_help_shows_examples_and_the_exit_statuses_once():
    code, top, _ = invoke("--help")
    assert code == 0 and "141  nobody read the output" in top
    for command in (
        ["run"],
        ["list"],
        ["table"],
        ["compare"],
        ["publish"],
        ["data"],
        ["data", "list"],
        ["data", "describe"],
        ["data", "get"],
        ["data", "check"],
    ):
        code, text, _ = invoke(*command, "--help")
        assert code == 0 and "Examples:\n" in text and f"nsl-repro {' '.join(command)}" in text, (
            text
        )
        assert "Exit status" not in text
    assert invoke()[:2] == (0, top)


def complete(monkeypatch, *words, shell="bash"):
    "What the shell is offered for the last word."
    monkeypatch.setenv("_NSL_REPRO_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["nsl-repro", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return CliRunner().invoke(cli.app, [], prog_name="nsl-repro").stdout.split()


def test_completion_in_bash(monkeypatch, place):
    offered = lambda *words: complete(monkeypatch, *words)
    assert offered("ta") == ["table"] and offered("data", "de") == ["describe"]
    assert offered("run", "nsl_ci") == ["nsl_cifar"] and offered("run", "nothing") == []
    assert offered("run", "nsl_cifar", "-p", "pre") == ["preset=", "precision="]
    assert offered("run", "nsl_cifar", "-p", "pres") == [
        "preset=",
        "preset=smoke",
        "preset=quick",
        "preset=small",
        "preset=paper",
    ]
    assert offered("run", "nsl_cifar", "-p", "preset=q") == ["preset=quick"]
    assert offered("run", "nsl_cifar", "-p", "preset", "=", "q") == [
        "quick"
    ]  # how bash breaks the word
    assert offered("run", "nsl_cifar", "-p", "preset", "=") == ["smoke", "quick", "small", "paper"]
    assert offered(
        "run", "nsl_cifar", "-p", "seeds", "=", "0", "-p", "methods", "=", "cnn,static_d"
    ) == ["cnn,static_dns"]
    assert offered("data", "get", "ci") == ["cifar10", "cifar100"]
    assert offered("compare", "-o", str(place / "ledger"), "toy__digits__smoke__c")[0].startswith(
        "toy__digits__smoke__cnn__seed0"
    )
    assert offered("compare", "-o", str(place / "file"), "toy") == []


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(monkeypatch, name):
    monkeypatch.setenv("_NSL_REPRO_COMPLETE", f"source_{name}")
    script = CliRunner().invoke(cli.app, [], prog_name="nsl-repro").stdout
    assert f"complete_{name}" in script and "nsl-repro" in script


def test_the_command_is_quick_because_it_imports_little():
    "Listing, describing, comparing and completing start no PyTorch, and no SciPy."
    code = """
import io, os, sys
from contextlib import redirect_stdout
from nsl_repro.command.cli import app

HEAVY = {"torch", "torchvision", "scipy", "sklearn", "matplotlib", "papermill"}
complete = {"_NSL_REPRO_COMPLETE": "complete_bash", "COMP_WORDS": "n run nsl_cifar -p pre"}
commands = [["list"], ["data", "describe", "cub"], ["list", "--results"], ["data", "get", "digits"]]
for args in [*commands, None]:
    if args is None:
        os.environ |= complete | {"COMP_CWORD": "4"}
    try:
        with redirect_stdout(io.StringIO()):
            app(args, prog_name="nsl-repro")
    except SystemExit as e:
        assert not e.code, args
    assert not HEAVY & set(sys.modules), (args, HEAVY & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
