"""How the code looks: lines of 100 characters, cells that fit a screen, nothing exported without a
cell that shows it.

Lines are counted without blank ones, comments of their own and docstrings: what is counted is
code. `python tests/test_style.py [-v] [PATH ...]` prints the figures of each notebook, `-v` each
place.
"""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTH, MOST = 100, 40  # characters per line; lines per exported cell and per function
LINK = re.compile(r"https?://\S+|\]\(\S+\)|^\s*%pip ")  # what cannot be broken over lines


class Fault(NamedTuple):
    "A place that breaks a rule."

    rule: str
    place: str
    detail: str


def parse(source):
    "The syntax tree of a cell or a file; magics are left out."
    return ast.parse(re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", source))


def docstrings(tree):
    "The numbers of all lines that hold docstrings."
    found = set()
    for node in ast.walk(tree):
        first = getattr(node, "body", None)
        first = first[0] if isinstance(first, list) and first else None
        if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
            found |= set(range(first.lineno, first.end_lineno + 1))
    return found


def length(source, tree, node=None):
    "The number of lines of code, of the whole or of one definition."
    lines = list(enumerate(source.splitlines(), 1))
    if node is not None:
        lines = lines[node.lineno - 1 : node.end_lineno]
    words = docstrings(tree)
    return sum(bool(t.strip()) and t.lstrip()[0] != "#" and i not in words for i, t in lines)


def long_lines(source, place):
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > WIDTH and not LINK.search(line):
            yield Fault("long line", f"{place}, line {number}", f"{len(line)}: {line.strip()[:80]}")


def long_functions(source, place):
    tree = parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if (n := length(source, tree, node)) > MOST:
                yield Fault("long function", place, f"{node.name}: {n} lines")


def only_imports(source):
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in parse(source).body)


def faults_of_cells(cells, place):
    "Of a notebook's cells: (type, source)."
    code = [(i, source) for i, (kind, source) in enumerate(cells) if kind == "code"]
    for i, (number, source) in enumerate(code):
        here = f"{place} [{number}]"
        yield from long_lines(source, here)
        yield from long_functions(source, here)
        if not source.startswith("#| export"):
            continue
        if (n := length(source, parse(source))) > MOST:
            yield Fault("long cell", here, f"{n} lines: {source.splitlines()[1][:70]}")
        after = code[i + 1][1] if i + 1 < len(code) else "#| export"
        if not only_imports(source) and after.startswith("#| export"):
            yield Fault("nothing shows it", here, source.splitlines()[1][:70])


def faults_of_text(source, place):
    "Of a file of Python."
    yield from long_lines(source, place)
    yield from long_functions(source, place)


def faults_of_file(path):
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    if path.suffix == ".py":
        return list(faults_of_text(path.read_text(encoding="utf-8"), place))
    notebook = nbformat.read(path, 4)
    return list(faults_of_cells([(c.cell_type, c.source) for c in notebook.cells], place))


def sources(paths=(ROOT / "nbs", ROOT / "tests", ROOT / "docs", ROOT / "setup.py")):
    "Notebooks and Python files that people read and write."
    for path in map(Path, paths):
        found = [path] if path.is_file() else sorted([*path.rglob("*.ipynb"), *path.rglob("*.py")])
        yield from (f for f in found if ".ipynb_checkpoints" not in f.parts)


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_style(path):
    faults = faults_of_file(path)
    assert not faults, "\n".join(map(": ".join, faults[:20]))


BROKEN = {  # rule -> cells that break it, and only it
    "long line": [("code", "x = '" + "a" * WIDTH + "'")],
    "long function": [("code", "def f(x):\n" + "    x += 1\n" * MOST)],
    "long cell": [("code", "#| export\n" + "x = 1\n" * (MOST + 1)), ("code", "print(x)")],
    "nothing shows it": [
        ("code", "#| export\nx = 1"),
        ("markdown", "words"),
        ("code", "#| export\ny = 1"),
        ("code", "y"),
    ],
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_seen_to_fail(rule):
    assert [fault.rule for fault in faults_of_cells(BROKEN[rule], "a")] == [rule]


def test_what_is_allowed():
    text = '"' + "words " * 90 + '"'
    function = f"def f(x):\n    {text}\n\n" + "    x += 1\n" * (MOST - 1)
    assert [f.rule for f in faults_of_text(function, "a")] == ["long line"]
    link = "# https://example.org/" + "a" * WIDTH
    imports = [("code", "#| export\nimport os"), ("code", "#| export\nx = 1"), ("code", "x")]
    assert not list(faults_of_text(link, "a")) and not list(faults_of_cells(imports, "a"))


def main(*arguments):
    "Print the figures of each notebook or file."
    verbose = "-v" in arguments
    paths = [a for a in arguments if a != "-v"]
    for path in sources(paths) if paths else sources():
        faults = faults_of_file(path.resolve())
        rules = [fault.rule for fault in faults]
        print(path, *(f"{rule}: {rules.count(rule)}" for rule in dict.fromkeys(rules)))
        for fault in faults if verbose else ():
            print("   ", *fault)


if __name__ == "__main__":
    main(*sys.argv[1:])
