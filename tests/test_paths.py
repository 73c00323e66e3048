"""Every path that a user gives is read in the same way, and where there is no ledger it is told."""

import ast
import json

import pytest
import torch
from conftest import ROOT

from nsl_repro.base.files import checksum, data_root, locked, make_folder, write_whole
from nsl_repro.command.runner import find_notebook, prepare
from nsl_repro.data.photos import photos_from_folder
from nsl_repro.results.ledger import find_entry, load_ledger, load_published, recorded_run
from nsl_repro.training.loop import load_checkpoint, newest_checkpoint, save_checkpoint

RUN = dict(experiment="nsl_cifar", dataset="digits", method="cnn", preset="smoke", seed=0)
GIVEN = {"path", "root", "folder", "file", "output", "notebook", "executed", "checkpoint", "cache"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder, and another folder to stand in."
    home, here = make_folder(tmp_path / "home"), make_folder(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert not list(here.iterdir())  # no folder named `~`


def test_files_in_the_home_folder(home):
    make_folder("~/kept")
    write_whole("~/kept/a", "a")
    assert checksum("~/kept/a") == checksum(home / "kept" / "a")
    with locked("~/kept/run") as folder:
        assert folder == home / "kept" / "run"
    assert data_root("~/kept") == home / "kept"
    save_checkpoint({"a": torch.ones(1)}, "~/kept/checkpoint.pt")
    assert load_checkpoint("~/kept/checkpoint.pt")["a"] == 1
    assert newest_checkpoint("~/kept/checkpoint.pt")["a"] == 1
    with pytest.raises(FileNotFoundError, match=f"{home}/kept/none must be a folder that holds"):
        photos_from_folder("~/kept/none")


@pytest.mark.parametrize("form", ["parameter", "option", "both"])
def test_output_in_the_home_folder(form, home):
    "`-p output=~/res` reaches us as it is typed: no shell replaces `~` behind `=`."
    output = None if form == "parameter" else "~/res"
    values = {} if form == "option" else {"output": "~/res"}
    job = prepare("nsl_cifar", values, output)
    assert job.root == home / "res" and job.values["output"] == str(home / "res")


def test_a_ledger_in_the_home_folder(home):
    work = lambda folder: ({"test_accuracy": 50.0}, {}, 1.0)
    entry = recorded_run(work, "~/res", **RUN, parameters={}, device="cpu")
    (file,) = (home / "res" / "runs").glob("*/entry.json")
    assert load_ledger("~/res") == [entry] == load_ledger(home / "res")
    assert find_entry(f"~/{file.relative_to(home)}") == entry
    (home / "mine.ipynb").write_text(json.dumps({"cells": []}))
    assert find_notebook("~/mine.ipynb") == home / "mine.ipynb"


def test_a_user_who_does_not_exist(home):
    with pytest.raises(ValueError, match="must begin with the home of a user, got '~nobody-here/a"):
        prepare("nsl_cifar", {"output": "~nobody-here/a"})


@pytest.mark.parametrize("load", [load_ledger, load_published])
def test_where_there_is_no_ledger(load, home):
    "An empty list comes with the folder's name."
    with pytest.warns(UserWarning, match="there is no ledger at no/such/folder, which is no fold"):
        assert load("no/such/folder") == []
    with pytest.warns(UserWarning, match=f"there is no ledger at {home}: no results"):
        assert load("~") == []


def test_no_path_is_read_in_another_way():
    "In the library nothing that a user gives becomes a path but by `user_path`."
    found = 0
    for file in sorted((ROOT / "nsl_repro").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for f in ast.walk(tree):
            if not isinstance(f, ast.FunctionDef) or f.name == "user_path":
                continue
            named = {a.arg for a in (*f.args.args, *f.args.kwonlyargs)} & GIVEN
            for call in ast.walk(f):
                if isinstance(call, ast.Call) and call.args:
                    by, first = getattr(call.func, "id", ""), getattr(call.args[0], "id", "")
                    found += by == "user_path" and first in named
                    assert not (by == "Path" and first in named), (file.name, f.name)
    assert found > 15
