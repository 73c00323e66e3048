"""Nothing that is read runs code: no checkpoint, cache, weights, data file, ledger entry,
description or parameters cell; what is installed has the hash that was reviewed.

Every hostile file would, if anybody unpickled or evaluated it, make a folder: the canary.
"""

import ast
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from PIL import Image

from nsl_repro import load
from nsl_repro.data import features, sources as catalogue
from nsl_repro.data.images import load_dataset
from nsl_repro.data.sources import DataNotFound
from nsl_repro.training.models import cnn9
from nsl_repro.data.photos import DamagedData, read_image
from nsl_repro.results.ledger import load_ledger, read_entry
from nsl_repro.command.parameters import parse_value, read_parameters
from nsl_repro.command.runner import prepare, run_experiment
from nsl_repro.training.loop import load_checkpoint
from nsl_repro.training.weights import Preprocessing, keep_model, read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "something that was read has been executed"


class Hostile:
    "As a pickle: a call of whatever its author likes."

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def hostile_files(folder, canary):
    """The ways in which a pickle can reach `torch.load`: bare, in torch's two formats, inside a
    state_dict."""
    folder.mkdir()
    (folder / "bare.pt").write_bytes(pickle.dumps(Hostile(canary)))
    torch.save(Hostile(canary), folder / "zip.pt")
    torch.save(Hostile(canary), folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": {"weight": torch.zeros(2), "more": Hostile(canary)}, "done": 1},
        folder / "inside.pt",
    )
    return sorted(folder.iterdir())


def test_the_canary_sings(tmp_path):
    "What the others rely on: these files do run, where they are trusted."
    for n, file in enumerate(hostile_files(tmp_path / "files", tmp_path / "canary")):
        with open(file, "rb") as f:
            pickle.load(f) if file.stem == "bare" else torch.load(f, weights_only=False)
        (tmp_path / "canary").rmdir()
    assert n == 3


def test_checkpoints_and_weights(canary, tmp_path):
    for file in hostile_files(tmp_path / "files", canary):
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load_checkpoint(file)
        for name in ("a.pth", "a.safetensors"):
            shutil.copy(file, tmp_path / name)
            with pytest.raises(ValueError, match="is not a readable file of weights"):
                features._read_weights(tmp_path / name)


def test_weights_that_were_downloaded_before(canary, tmp_path, monkeypatch):
    """A file of that name in torch's folder of downloads is not asked for its hash: it must not be
    trusted either."""
    from torchvision.models import GoogLeNet_Weights

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for file in hostile_files(tmp_path / "files", canary)[-1:]:
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(
            file, tmp_path / "checkpoints" / GoogLeNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
        )
        with pytest.raises(DataNotFound, match="the weights of googlenet could not be downloaded"):
            features.load_backbone("googlenet")


def test_descriptions_of_models(canary, tmp_path):
    arguments = dict(method="cnn", width=0.125, in_channels=1, image_size=16)
    folder = keep_model(
        tmp_path / "model",
        cnn9(**arguments),
        "cnn9",
        arguments,
        Preprocessing.of(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "raw"),
    )
    load(folder)
    good, code = (
        json.loads((folder / "config.json").read_text()),
        f"__import__('os').mkdir({str(canary)!r})",
    )
    for changed in (
        dict(builder="os.mkdir", arguments=dict(path=str(canary))),
        dict(builder=code),
        dict(builder="__import__"),
        dict(arguments=code),
        dict(arguments=arguments | dict(method=code)),
        dict(arguments=arguments | {code: 1}),
        dict(arguments=arguments | dict(width=1e9)),
        dict(builder="classifier", arguments=dict(backbone=f"local-dir:{folder}", classes=2)),
        dict(builder="embedding", arguments=dict(in_dim=10**12, dim=10**6)),
        dict(preprocessing=code),
        dict(preprocessing=good["preprocessing"] | dict(backbone=code)),
        dict(weights=code),
        dict(schema=code),
    ):
        (folder / "config.json").write_text(json.dumps(good | changed))
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            load(folder)
    (folder / "config.json").write_bytes(pickle.dumps(Hostile(canary)))
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_config(folder)


def test_the_ledger(canary, tmp_path):
    real, code = (
        json.loads(next((ROOT / "data" / "results").glob("*.json")).read_text()),
        f"__import__('os').mkdir({str(canary)!r})",
    )
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "a.json"
    for bad in (
        {"experiment": code},
        {"method": code},
        {"seed": code},
        {"metrics": code},
        {"metrics": {"a": code}},
        {"curves": {"a": [code]}},
        {"schema": code},
        {code: 1},
    ):
        file.write_text(json.dumps(real | bad))
        with pytest.raises(ValueError, match=r"a\.json is not valid"):
            read_entry(file)
    file.write_bytes(pickle.dumps(Hostile(canary)))
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        load_ledger(tmp_path)
    file.write_text(
        json.dumps(real | {"device": code, "parameters": {"a": code}, "versions": {code: code}})
    )  # text may say anything
    assert load_ledger(tmp_path)[0].device == code


def test_cifar(canary, tmp_path, monkeypatch):
    """CIFAR's own files are pickles: they are opened after their published checksum has matched,
    and not otherwise."""
    for name in ("cifar10", "cifar100"):
        source = catalogue.SOURCES[name]
        folder = tmp_path / source.folders[0]
        folder.mkdir()
        for file in source.files:
            (folder / file).write_bytes(pickle.dumps(Hostile(canary)))
        with pytest.raises(DataNotFound, match="the md5 of .* is not the published one"):
            load_dataset(name, tmp_path)
        with pytest.raises(DataNotFound, match="the md5 of"):
            prepare(
                "nsl_cifar", dict(dataset=name, data_root=str(tmp_path))
            ) if name == "cifar10" else load_dataset(name, tmp_path)
        md5 = hashlib.md5(pickle.dumps(Hostile(canary))).hexdigest()
        monkeypatch.setitem(
            catalogue.SOURCES, name, replace(source, files={file: md5 for file in source.files})
        )
        with pytest.raises(
            DataNotFound, match="could not be read"
        ):  # and torchvision, which opens them, compares once more
            load_dataset(name, tmp_path)


def test_images_are_pixels(canary, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called. Here a script stands in
    for it, which leaves the canary."""
    from PIL import EpsImagePlugin

    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\nmkdir '{canary}'\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DamagedData, match=r"a\.jpg cannot be decoded"):
        read_image(tmp_path / "a.jpg")
    assert not canary.exists()
    with pytest.raises(Exception):  # noqa: B017  the converter has converted nothing
        Image.open(tmp_path / "a.jpg").load()
    assert canary.exists(), "Pillow on its own would not have run it: this test shows nothing"
    canary.rmdir()


def test_parameters_are_not_executed(canary, notebook):
    code = f"__import__('os').mkdir({str(canary)!r})"
    for n, line in enumerate(
        [
            f"x: int = {code}",
            f"x: {code} = 1",
            f"x: Literal[{code}] = 1",
            f"x: list[{code}] = []",
            f"x: str = f'{{{code}}}'",
            code,
            f"x = {code}",
            f"x: int = 1 if {code} else 2",
            f"x: int = (y := {code})",
            f"x: list[int] = [{code} for _ in 'a']",
            f"x: int = (lambda: {code})()",
            f"@{code}\ndef f(): pass",
            f"class A:\n    {code}",
            f"if True:\n    {code}",
            f"x: int = 1; {code}",
            f"!mkdir {canary}",
            f"%%bash\nmkdir {canary}",
        ]
    ):
        with pytest.raises(ValueError, match="parameters cell, line"):
            read_parameters(notebook(f"n{n}", line))
    assert list(
        read_parameters(
            notebook("imports", f"import os; from os import mkdir\nx: int = 1  # {code}")
        )
    ) == ["x"]


def test_values_are_not_executed(canary, notebook, tmp_path):
    """What is typed behind `-p` arrives in the notebook as the text or the number that it is, and
    as nothing else."""
    code = f"__import__('os').mkdir({str(canary)!r})"
    texts = [
        code,
        f"[{code}]",
        f"({code},)",
        f'"; {code}; "',
        f"'''\n{code}\n'''",
        f'"""\n{code}\n#',
        f"\\\n{code}",
        f"{{{code}}}",
        f"x\n{code}\n",
        f"!mkdir {canary}",
        f"%system mkdir {canary}",
        "\\",
        "\\'",
        "\u2028" + code,
        "$(touch x)",
    ]
    cells = [
        'texts: list[str] = []\none: str = ""\noutput: str = ""',
        "import json, pathlib\npathlib.Path(output, 'got.json').write_text(json.dumps([texts, "
        "one]))",
    ]
    path = notebook("texts", *cells)
    parameters = read_parameters(path)
    for kind in ("int", "float", "bool", "list[int]"):
        other = read_parameters(
            notebook("other", f"x: {kind} = {dict(int=1, float=1.0, bool=True).get(kind, [])}")
        )["x"]
        for text in texts:
            with pytest.raises(ValueError, match="x must be"):
                parse_value(text, other)
    assert parse_value(code, parameters["one"]) == code
    run_experiment(path, dict(texts=texts, one=texts[1]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "got.json").read_text()) == [texts, texts[1]]


# What would run, or unpickle, what it is given; with one of these arguments the call is all right
FORBIDDEN = {
    "eval": {},
    "exec": {},
    "compile": {},
    "__import__": {},
    "pickle.load": {},
    "pickle.loads": {},
    "pickle.Unpickler": {},
    "marshal.load": {},
    "marshal.loads": {},
    "shelve.open": {},
    "joblib.load": {},
    "dill.load": {},
    "dill.loads": {},
    "cloudpickle.load": {},
    "cloudpickle.loads": {},
    "pandas.read_pickle": {},
    "os.system": {},
    "os.popen": {},
    "pty.spawn": {},
    "subprocess.getoutput": {},
    "subprocess.getstatusoutput": {},
    "yaml.load": {},
    "yaml.unsafe_load": {},
    "yaml.full_load": {},
    "torch.hub.load": {},
    "torch.load": dict(weights_only=True),
    "torch.jit.load": {},
    "torch.export.load": {},
    "torch.hub.load_state_dict_from_url": dict(weights_only=True),
    ".get_state_dict": dict(weights_only=True),
    ".extractall": dict(filter="data"),
    "tempfile.mktemp": {},
    ".run_cell": {},
    ".system": {},
    ".getoutput": {},
    ".run_line_magic": {},
    ".run_cell_magic": {},
}
ARGUMENTS = {
    "shell": False,
    "allow_pickle": False,
    "trust_remote_code": False,
    "weights_only": True,
}  # of any call, where they are given
REVIEWED = {  # (file, call): why
    ("tests/test_readme.py", "exec"): "the README's own example, to see that it works",
    ("tests/test_readme.py", "compile"): "the same",
    (
        "tests/test_distributed.py",
        "exec",
    ): "a text in that file, shared with the processes it starts",
    ("tests/test_others.py", "pickle.loads"): "a network that the test has just pickled",
    ("tests/test_bench.py", "exec"): "a cell of bench_dynamic, with its counters",
    ("tests/test_colab.py", "exec"): "the cell that this project shows to Colab, with pip replaced",
    ("tests/reliability/test_trust.py", "pickle.load"): "the canary sings",
    ("tests/reliability/test_trust.py", "torch.load"): "the canary sings",
    ("tests/reliability/test_trust.py", "weights_only="): "the canary sings",
    (
        "nbs/base/02_files.ipynb",
        "os.system",
    ): "a fixed line, to kill a process of the cell's own a moment later",
    ("nbs/base/02_files.ipynb", ".system"): "the same",
    (
        "nbs/nsl/03_static.ipynb",
        "pickle.loads",
    ): "layers that the cell itself has pickled: that they can be is what is shown",
    ("nbs/nsl/10_folding.ipynb", "pickle.loads"): "the same, of folded ones",
    (
        "nbs/training/10_weights.ipynb",
        "pickle.loads",
    ): "shows with a pickle made in the same cell why weights are no pickles",
}


def sources():
    """Every Python text of the project: (file, text), notebooks' code cells with magics and shell
    lines as the calls that they are."""
    for file in [
        *ROOT.glob("*.py"),
        *(f for folder in ("nsl_repro", "tests", "docs") for f in (ROOT / folder).rglob("*.py")),
    ]:
        yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    transform = TransformerManager().transform_cell
    for file in (ROOT / "nbs").rglob("*.ipynb"):
        for cell in (
            json.loads(file.read_text(encoding="utf-8"))["cells"]
            if ".ipynb_checkpoints" not in file.parts
            else []
        ):
            if cell["cell_type"] == "code":
                text = "".join(cell["source"])
                yield (
                    file.relative_to(ROOT).as_posix(),
                    transform(text)
                    if re.search(r"^\s*[!%?]|[!%?]\s*\w|\?\s*$", text, re.M)
                    else text,
                )


def calls(tree):
    "(dotted name with imports resolved, the call) of every call."
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    names |= {"np": "numpy", "pd": "pandas"}  # imported in another cell
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, *rest = ast.unparse(node.func).split(".")
            yield ".".join([names.get(head, head), *rest]), node


def found(file, text):
    "(file, what) of every call that is forbidden as it stands."
    for name, call in calls(ast.parse(text)):
        if ast.unparse(call) in MAGICS:
            continue
        given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        said = {k.arg for k in call.keywords}
        for forbidden, unless in FORBIDDEN.items():
            if (name == forbidden or (forbidden[0] == "." and name.endswith(forbidden))) and not (
                unless and all(given.get(k) == v for k, v in unless.items())
            ):
                yield file, forbidden
        for argument, value in ARGUMENTS.items():
            if (
                argument in said
                and given.get(argument) is not value
                and name.split(".")[0] != "dict"
            ):
                yield file, f"{argument}="
        if (
            name.endswith("Image.open")
            and "formats" not in said
            and "reliability" not in file
            and file not in PICTURES
        ):
            yield file, "Image.open"


MAGICS = {  # in Colab only: the project itself, with the versions that pip finds
    "get_ipython().run_line_magic('pip', 'install -q \"nsl_repro[notebooks] @ "
    "git+https://github.com/nsl-repro/nsl_repro\"')"
}
PICTURES = {
    "nsl_repro/results/pages.py",
    "nbs/results/07_pages.ipynb",
    "nbs/data/06_features.ipynb",
}  # that the same code has drawn


def test_no_call_runs_what_it_reads():
    bad = {hit for file, text in sources() for hit in found(file, text)}
    assert bad - set(REVIEWED) == set(), "forbidden, or to be reviewed"
    assert set(REVIEWED) - bad == set(), "reviewed, but not there any more"


def test_the_search_finds():
    for text in (
        "import pickle as p; p.load(f)",
        "from pickle import loads; loads(b)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "exec(x)",
        "import yaml; yaml.load(f)",
        "subprocess.run(x, shell=True)",
        "import os as o; o.system(x)",
        "tar.extractall(x)",
        "tar.extractall(x, filter=f)",
        "weights.get_state_dict()",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "Image.open(x)",
        TransformerManager().transform_cell("!rm x"),
        TransformerManager().transform_cell("%run x"),
        "torch.load(f, weights_only=flag)",
    ):
        assert list(found("a.py", text)), text
    for text in (
        *MAGICS,
        "json.load(f)",
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "model.eval()",
        "tar.extractall(x, filter='data')",
        "re.compile(x)",
        "torch.compile(x)",
        "subprocess.run(['a'])",
        "Image.open(x, formats=['PNG'])",
    ):
        assert not list(found("a.py", text)), text


def lock():
    "(requirement, hashes) of every entry of requirements.lock."
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            yield requirement.strip(), [h.strip() for h in hashes]


def test_every_requirement_has_its_hashes():
    entries, pinned = (
        list(lock()),
        [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ],
    )
    assert [requirement for requirement, _ in entries] == pinned, (
        "requirements.lock and constraints.txt must agree: make lock"
    )
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.+!-]+( ; .+)?", requirement) for requirement, _ in entries
    )
    assert all(
        hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in hashes)
        for _, hashes in entries
    )
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    versions = {}
    for requirement, _ in entries:
        r = Requirement(requirement)
        versions.setdefault(normal(r.name), []).append(next(iter(r.specifier)).version)
    for key, value in settings["DEFAULT"].items():
        for need in map(Requirement, value.split() if key.endswith("requirements") else []):
            assert any(
                need.specifier.contains(v, prereleases=True)
                for v in versions.get(normal(need.name), [])
            ), f"{need} is not in requirements.lock: make lock"
    assert {"setuptools", "wheel"} <= set(versions)  # they build the project


def test_make_installs_nothing_else():
    """Both commands go through one rule, and that rule takes everything from the lock: with hashes,
    from wheels, and the project itself without its requirements."""
    said = subprocess.run(
        ["make", "-n", "-W", "requirements.lock", "test"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    installs = [
        line.split("-m pip install ")[1] for line in said.splitlines() if "pip install" in line
    ]
    assert installs == [
        "--no-compile --require-hashes --only-binary :all: -r requirements.lock",
        "--no-deps --no-build-isolation -e .",
    ], said


@pytest.mark.parametrize("change", ["hash", "missing"])
def test_another_file_is_refused(change, tmp_path):
    "pip is given a wheel that is not the one in the lock, or that the lock does not name."
    import zipfile

    info = "something-1.0.dist-info"
    files = {
        "something.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: something\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(tmp_path / "something-1.0-py3-none-any.whl", "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
    lock = tmp_path / "requirements.lock"
    wanted = f" --hash=sha256:{'0' * 64}" if change == "hash" else ""
    lock.write_text(f"something==1.0{wanted}\n")
    options = f"--isolated --no-index --require-hashes --only-binary :all: -r {lock}"
    options += f" --find-links {tmp_path} --target {tmp_path / 'in'}"
    command = [sys.executable, "-m", "pip", "install", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    complaint = "DO NOT MATCH THE HASHES" if change == "hash" else "Hashes are required"
    assert done.returncode and complaint in done.stderr, done.stderr
    assert not (tmp_path / "in").exists()
