"""The ledger takes writers by the dozen, and whatever somebody puts into it or into a notebook's
parameters, the answer is one sentence with the file's name."""

import json
import random
import time
from copy import deepcopy

import pytest
from victim import HERE, SOAK, start

from nsl_repro.results import claims
from nsl_repro.results.claims import paper_results
from nsl_repro.results.ledger import (
    entry_name,
    load_ledger,
    new_entry,
    read_entry,
    recorded_run,
    write_entry,
)
from nsl_repro.command.parameters import read_parameters

ENTRY = dict(
    schema=1,
    experiment="toy",
    dataset="digits",
    method="cnn",
    preset="smoke",
    seed=0,
    parameters={"lr": 0.1, "drops": [1, 2]},
    metrics={"test_accuracy": 90.0},
    curves={"step": [1, 2]},
    wall_time_s=1.0,
    device="cpu",
    versions={"python": "3"},
    commit="",
    dirty=False,
)


def write_many(root, writer, entries):
    for n in range(entries):
        write_entry(new_entry(**ENTRY | {"seed": 1000 * writer + n}), root)
        if n % 20 == 0:  # and one that everybody writes
            write_entry(new_entry(**ENTRY | {"seed": 999_999, "wall_time_s": float(writer)}), root)


def test_eight_processes_of_two_hundred_entries(tmp_path, measured):
    start(
        write_many, tmp_path / "errors", tmp_path, 0, 0
    ).join()  # whoever comes first waits for the imports
    began = time.perf_counter()
    writers = [start(write_many, tmp_path / "errors", tmp_path, writer, 200) for writer in range(8)]
    while any(writer.is_alive() for writer in writers):  # a reader meets whole entries only
        load_ledger(tmp_path)
        time.sleep(0.2)
    assert [writer.exitcode for writer in writers] == [0] * 8
    seconds = time.perf_counter() - began
    found = load_ledger(tmp_path)
    assert sorted(e.seed for e in found) == [
        *(1000 * writer + n for writer in range(8) for n in range(200)),
        999_999,
    ]
    assert len(list((tmp_path / "results").iterdir())) == 1601
    measured(processes=8, entries=len(found) - 1, writing_s=round(seconds, 1))


def one_run(root, name, seconds):
    def work(folder):
        with open(root / "log", "a") as log:
            log.write(f"{name}\n")
        time.sleep(seconds)
        return {"test_accuracy": 50.0}, {}, 1.0

    identity = {
        k: ENTRY[k]
        for k in ("experiment", "dataset", "method", "preset", "seed", "parameters", "device")
    }
    recorded_run(work, root, **identity)


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_asked_for_one_run_do_it_once(tmp_path, capfd, killed):
    first = start(one_run, tmp_path / "first", tmp_path, "first", 60 if killed else 1.5)
    while not (tmp_path / "log").exists():
        assert first.exitcode in (None, 0), (tmp_path / "first" / "errors").read_text()
        time.sleep(0.02)
    second = start(one_run, tmp_path / "second", tmp_path, "second", 0)
    errors = tmp_path / "second" / "errors"
    while not (errors.exists() and "waiting" in errors.read_text()):
        assert second.is_alive()
        time.sleep(0.02)
    if killed:
        first.kill()
    for process in (first, second):
        process.join(60)
    assert (first.exitcode, second.exitcode) == (-9 if killed else 0, 0)
    (entry,) = load_ledger(tmp_path)
    assert (
        errors.read_text()
        == f"{entry_name(entry)} is under way in process {first.pid}; waiting for it\n"
    )
    assert (tmp_path / "log").read_text().split() == (["first", "second"] if killed else ["first"])


# -- files that are not what they should be

WRONG = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    1e308,
    "",
    "x",
    "ÿ\u202e\x00",
    "\ud800",
    [],
    [None],
    [[["x"]]],
    {},
    {"": None},
    {"a": {"b": [1e999]}},
    float("nan"),
    float("inf"),
]


def nested(depth, left="[", right="]"):
    return left * depth + right * depth


def with_wrong_value(draw, fields):
    "Somewhere in nested fields one value or key is another one."
    place = fields
    while isinstance(place, (dict, list)) and place:
        among_keys = isinstance(place, dict)
        key = draw.choice(list(place)) if among_keys else draw.randrange(len(place))
        if not isinstance(place[key], (dict, list)) or draw.random() < 0.4:
            break
        place = place[key]
    if place:
        place[key] = deepcopy(draw.choice(WRONG))
    elif isinstance(place, dict):
        place[draw.choice(["", "new", "é" * 1000, "\n"])] = deepcopy(draw.choice(WRONG))


NO_JSON = (b"", b"\xff\xfe", b"\x00" * 1000, b"null", b"1", b'"x"', b"[]", b"{}", b"1" * 10_000)


def damaged(draw, text, cases):
    """Ways in which a JSON file can be wrong: cut, flipped bits, other types and keys, too deep,
    too long, no JSON at all."""
    data = text.encode()
    yield from (data[:n] for n in draw.sample(range(len(data)), min(len(data), cases // 8)))
    for _ in range(cases // 4):
        at = draw.randrange(len(data))
        yield data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    for _ in range(cases // 2):
        fields = json.loads(text)
        for _ in range(draw.randrange(1, 3)):
            with_wrong_value(draw, fields)
        yield json.dumps(fields, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    for deep in (300, 900, 5000, 100_000):
        for value in (nested(deep), nested(deep, '{"a":', "}"), nested(deep)[:deep]):
            yield value.encode()
            yield text.replace("[1, 2]", value, 1).encode()
    yield from NO_JSON
    yield from (b"\xef\xbb\xbf" + data, data + b"x", data * 2, text.encode("utf-16"))
    yield text.replace("[1, 2]", "[" + "1," * 2_000_000 + "1]", 1).encode()  # 4 MB
    yield text.replace("[1, 2]", json.dumps(["x"] * 100_000), 1).encode()
    yield data + b" " * 100_000_000


def assert_one_sentence(read, path, cases):
    "Every case is read, or refused in one short sentence that names the file, and quickly."
    refused, slowest = 0, 0.0
    for content in cases:
        path.write_bytes(content)
        began = time.perf_counter()
        try:
            read()
        except ValueError as e:
            refused += 1
            said = str(e)
            assert path.name in said and len(said) < 2500 and said.isprintable(), said[:500]
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 20, slowest
    return refused, slowest


CASES = 40_000 if SOAK else 1200


def test_entries_of_any_content(tmp_path, measured):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "toy__x.json"
    for read in (lambda: read_entry(path), lambda: load_ledger(tmp_path)):
        refused, slowest = assert_one_sentence(
            read, path, damaged(random.Random(0), json.dumps(ENTRY), CASES)
        )
        assert refused > CASES / 2
        measured(refused=refused, slowest_s=round(slowest, 2))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="toy__x.json is not valid JSON: it is not a file"):
        load_ledger(tmp_path)


def test_papers_figures_of_any_content(tmp_path, monkeypatch, measured):
    (tmp_path / "data").mkdir()
    path, real = tmp_path / "data" / "paper_results.json", paper_results()
    text = json.dumps(
        {
            "results": [r.model_dump() for r in real.results[:3]],
            "claims": [c.model_dump() for c in real.claims[:2]],
        }
    )
    monkeypatch.setattr(claims, "project_root", lambda: tmp_path)
    refused, slowest = assert_one_sentence(
        paper_results, path, damaged(random.Random(1), text, CASES // 2)
    )
    assert refused > CASES / 5
    measured(refused=refused, slowest_s=round(slowest, 2))


HOSTILE = [
    "x: int = " + "-" * 50_000 + "1",
    "x: list[int] = " + nested(5000),
    "x: int = " + nested(90, "(", ")").replace("()", "(1)"),
    "x: int = 9**9**9",
    "x: str = 'a' * 10**10",
    "x: int = " + "9" * 5000,
    "x: int = __import__('os').system('touch owned')",
    "x\x00: int = 1",
    "x: int = 1\n\x00",
    "\ud800: int = 1",
    "ＸＸ: int = 1",
    "x: " + "list[" * 3000 + "int" + "]" * 3000 + " = 1",
    "x: int = 1 if True else 2",
    "x: int = " + "1+" * 20_000 + "1",
    "x: str = '''",
    "\tx: int = 1\n  y: int = 1",
    "x: int = (",
    "x: str = '" + "y" * 200_000 + "'",
    "#" * 10**7,
    "x: float = 1e999",
    "def f(): pass",
]


def test_parameters_of_any_content(tmp_path, measured):
    path, draw = tmp_path / "toy.ipynb", random.Random(2)
    source = (
        "from typing import Literal\ndataset: Literal['digits', 'cub'] = 'digits'  # what\nseeds: "
        "list[int] = [1, 2]\nlr: float = 0.1\n"
    )
    whole = lambda source: json.dumps(
        {
            "cells": [
                {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
            ],
            "metadata": {},
        }
    )
    wrecked = [
        "".join(draw.choice("x:=[]()'\"#\n 1ünsLiteralt\\\0\t,") for _ in range(draw.randrange(60)))
        for _ in range(CASES // 4)
    ]
    edited = [
        source[:n] + draw.choice(["", "(", "'", "\n", "\0", "é"]) + source[n + draw.randrange(3) :]
        for n in range(len(source))
    ]
    sources = [whole(text).encode("utf-8", "surrogatepass") for text in HOSTILE + wrecked + edited]
    refused, slowest = assert_one_sentence(
        lambda: read_parameters(path), path, [*sources, *damaged(draw, whole(source), CASES // 4)]
    )
    assert refused > CASES / 4
    measured(refused=refused, slowest_s=round(slowest, 2))
    assert not list(HERE.glob("**/owned")) and not list(tmp_path.glob("owned"))
