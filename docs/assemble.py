"""Lay out the sources of the site in `_docs/source`.

The notebooks are the pages; nothing is written twice. Each is copied without what only nbdev needs
to see, its links are resolved against the repository (a page, or else a file on GitHub; a target
that does not exist is an error), and every exported cell says what it exports. One page a module
and the page of results are written from the library itself. A file that has not changed is not
touched, so that Sphinx reads it only once.
"""

import ast
import base64
import copy
import html
import io
import json
import posixpath
import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import nbformat
from colab import BADGE, colab_url
from docments import to_rst

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "_docs" / "source"
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
GITHUB, BRANCH = SETTINGS["DEFAULT"]["git_url"], SETTINGS["DEFAULT"]["branch"]
SECTIONS = {  # in the order of reading: page, in the folder of its notebooks -> (title, line)
    "nsl/index": (
        "Neural similarity",
        "The mathematics and the layers of the first paper. Each notebook builds on the one "
        "before it.",
    ),
    "pddm/index": (
        "PDDM",
        "The position-dependent metric of the second paper: the unit, its mining and its loss.",
    ),
    "kernels/index": ("Kernels", "The dynamic convolution at nearly the price of a convolution."),
    "experiments/index": ("Experiments", "One question of a paper per notebook, with its answer."),
    "atlas/index": (
        "Atlas",
        "Other answers to the same question: one learned similarity per notebook, all on the same "
        "benches, each with a claim that is judged.",
    ),
    "data/index": (
        "Data",
        "Images, photographs and frozen features, and the order in which a training sees them.",
    ),
    "training/index": ("Training", "Networks, recipes and loops that can be killed at any moment."),
    "results/index": ("Results", "The ledger of runs, intervals, verdicts, tables and figures."),
    "command/index": ("Command line", "The command `nsl-repro`."),
    "base/index": ("Base", "What everything stands on: checked arguments, whole files, downloads."),
}
AFTER_SECTIONS = [  # pages behind them
    *("results", "reliability", "api/index", "README <readme>", "Data <data>"),
    *("contributing", "changelog"),
]
PROJECT = {
    "readme": "README.md",
    "data": "data/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}


def find_pages() -> dict[str, str]:  # file in the repository -> name of its page
    "Every notebook and every text that has a page."
    pages = {file: name for name, file in PROJECT.items()}
    for path in sorted((ROOT / "nbs").rglob("[!_.]*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            pages[path.relative_to(ROOT).as_posix()] = (
                path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
            )
    return pages


PAGES = find_pages()
FILES: dict[str, Path] = {}  # pictures that texts show, by their path in the repository
PICTURES: dict[str, bytes] = {}  # pictures that are made here, by their place in the sources
LESSONS = ("nsl", "pddm", "kernels", "data", "training", "results")  # with a figure on top


def relative(name: str, page: str) -> str:
    "How a page (or a file in the sources) is reached from a page."
    return posixpath.relpath(name, posixpath.dirname(page) or ".")


def relink(text: str, file: str) -> str:
    """Markdown of a file of the repository, its links resolved. Raises `ValueError` for a link to
    nothing."""

    def resolve(match):
        if match["picture"]:  # it comes along
            name = posixpath.normpath(posixpath.join(posixpath.dirname(file), match["picture"]))
            FILES[name] = ROOT / name
            return match[0].replace(match["picture"], relative(f"files/{name}", PAGES[file]))
        target = match["target"]
        if target is None or re.match(r"[a-z]+:", target):
            return match[0]
        if target.startswith("#"):
            return "]({})".format(target.lower().replace("'", ""))  # as headings are called here
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if path in PAGES:
            name = PAGES[path] + posixpath.splitext(path)[1]
            anchor = anchor.lower().replace("'", "")
            place = f"#{anchor}" if anchor else ""  # as the site's headings are called
            return f"]({relative(name, PAGES[file])}{place})"
        if (ROOT / path).exists() and not path.startswith(".."):
            return f"]({GITHUB}/{'tree' if (ROOT / path).is_dir() else 'blob'}/{BRANCH}/{path})"
        raise ValueError(
            f"{file}: the link {target!r} must lead to a file of the repository, but there is no "
            f"{path}."
        )

    code = r"(?s)```.*?```|`[^`\n]*`"
    picture = r"!\[[^\]]*\]\((?P<picture>(?!https?:|attachment:)[^)\s]+)\)"
    return re.sub(rf"{code}|{picture}|\]\((?P<target>[^)\s]+)\)", resolve, text)


@cache
def read(file: str):
    return nbformat.read(ROOT / file, 4)


def cells_of(file: str) -> list:
    return read(file).cells if file.endswith(".ipynb") else []


def heading(file: str) -> tuple[str, str]:  # (title, the line under it or '')
    "The title of a notebook and what it is about."
    first = cells_of(file)[0].source
    title = re.match(r"# (.*)", first)[1]
    line = re.search(r"(?m)^> (.*(?:\n> .*)*)", first)
    return title, line[1].replace("\n> ", " ") if line else ""


def defined(source: str) -> list[str]:
    "The public functions, classes and constants that a cell defines."
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [t.id for t in targets if isinstance(t, ast.Name) and not t.id.islower()]
    return [n for n in dict.fromkeys(names) if not n.startswith("_")]


def read_directives(source: str) -> tuple[list[str], str]:  # (directives, the rest)
    "nbdev's lines at the top of a cell, and the cell without them."
    lines = source.splitlines()
    here = [line[2:].strip() for line in lines if line.startswith("#|")]
    return here, "\n".join(line for line in lines if not line.startswith("#|")).strip("\n")


def read_exports() -> tuple[
    dict[str, str], dict[str, str]
]:  # module -> its notebook; full name -> the page whose cell defines it
    "Which notebook explains which module, and which of its cells which name."
    modules, names = {}, {}
    for file in PAGES:
        module = None
        for cell in cells_of(file):
            if cell.cell_type == "code":
                directives, source = read_directives(cell.source)
                for directive in directives:
                    if directive.startswith("default_exp "):
                        module = directive.split()[1]
                        modules[module] = file
                    if directive == "export":
                        names.update(
                            {f"nsl_repro.{module}.{name}": PAGES[file] for name in defined(source)}
                        )
    return modules, names


MODULES, NAMES = read_exports()


def markdown(text: str):
    return nbformat.v4.new_markdown_cell(text)


def fold(cell, words: str) -> None:
    "Show a code cell's source only when asked."
    cell.metadata.setdefault("tags", []).append("hide-input")
    shown = {"code_prompt_show": words, "code_prompt_hide": f"Hide: {words[0].lower()}{words[1:]}"}
    cell.metadata.setdefault("mystnb", {}).update(shown)


def is_setup(source: str) -> bool:
    "Whether a cell has nothing but imports."
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


def code_cells(cell, module: str | None, file: str) -> list:
    "A code cell without directives, below links to what it exports; nothing if it is hidden."
    directives, source = read_directives(cell.source)
    known = ("default_exp", "export", "hide", "eval", "notest")  # the last two change no page
    for directive in directives:
        if directive.split()[0].rstrip(":") not in known:
            raise ValueError(
                f"{file}: docs/assemble.py must know what to do with a directive, but does not "
                f"know {directive!r}."
            )
    if "hide" in directives or not source:
        return []
    cell.source = source
    if "export" not in directives:
        return [cell]
    cell.metadata.setdefault("tags", []).append("exported")
    links = [
        f'<a id="source-{n}"></a>{{py:obj}}`{n} <nsl_repro.{module}.{n}>`' for n in defined(source)
    ]
    above = [markdown(f":::{{container}} exports\n{' '.join(links)}\n:::")] if links else []
    return [*above, cell]


def parameter_table(file: str) -> str:
    "The parameters of an experiment, as they are read by the command."
    from nsl_repro.command.parameters import read_parameters

    rows = ["| parameter | default | may be | what it is |", "|---|---|---|---|"]
    for p in read_parameters(ROOT / file).values():
        default = ", ".join(p.default) if p.is_list and p.choices else json.dumps(p.default)
        empty = p.default in ("", []) and "empty"
        may_be = ", ".join(map(str, p.choices)) if p.choices else p.annotation
        several = "any of " if p.is_list and p.choices else ""
        cells = [f"`{p.name}`", empty or default.strip('"'), several + may_be, p.help]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def answer_block(file: str) -> tuple[str, str]:  # Markdown of the answer, and in one line
    "What came out of an experiment: drawn from the ledger of now, not from the notebook's output."
    from nsl_repro.results.answers import answer

    name = Path(file).stem
    found, picture = answer(name), ""
    if (figure := found.plot()) is not None:
        made = f"answers/{name}.png"
        PICTURES[made] = as_png(figure)
        alt = f"{heading(file)[0]}: each difference with its 95 % interval, from the ledger"
        picture = f"\n\n![{alt}]({relative(made, PAGES[file])})"
    return f"::::{{container}} answer\n{found.text}{picture}\n::::", found.brief


def lead(cells: list, file: str) -> list:
    "The first figure of a lesson, for the top of its page; of several the one tagged *lead*."
    shown = []
    for n, cell in enumerate(cells):
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                shown.append(("lead" in cell.metadata.get("tags", []), -n, n, png))
    if not shown:
        return []
    _, _, n, png = max(shown)
    name = f"leads/{PAGES[file]}.png"
    PICTURES[name] = base64.b64decode(png)
    titles = [re.findall(r"(?m)^#+ (.*)", c.source) for c in cells[: n + 1] if is_text(c)]
    title = re.sub(r"[$`*]", "", [t for found in titles for t in found][-1])
    cells.insert(n, markdown('<a id="first-figure"></a>'))
    text = f"![Figure: {title}]({relative(name, PAGES[file])})\n\n"
    text += f'<a href="#first-figure">{html.escape(title)}</a>'
    return [markdown(f":::{{container}} lead\n{text}\n:::")]


def is_text(cell) -> bool:
    return cell.cell_type == "markdown"


def ideas() -> list[str]:  # pages
    "The short way through the notebooks: the list in the tour."
    (text,) = [c.source for c in cells_of("nbs/index.ipynb") if "## Two ways to read" in c.source]
    text = text.partition("**Ideas")[2].partition("**Everything")[0]
    return [PAGES[f"nbs/{file}"] for file in re.findall(r"\]\(([^)#]+\.ipynb)\)", text)]


def next_idea(file: str) -> list[str]:
    "A link to the next page of the short way, on the pages that belong to it."
    way = ideas()
    if PAGES[file] not in way:
        return []
    n = way.index(PAGES[file])
    words = f"Ideas, {n + 1} of {len(way)}"
    if n + 1 == len(way):
        return [f"[{words}: then the results]({relative('results.md', PAGES[file])})"]
    (after,) = [f for f, page in PAGES.items() if page == way[n + 1]]
    target = relative(way[n + 1] + ".ipynb", PAGES[file])
    return [f"[{words}: next {heading(after)[0]}]({target})"]


def page_links(file: str, module: str | None):
    "The links below the title."
    links = [f"[Open in Colab]({colab_url(file)})", f"[GitHub]({GITHUB}/blob/{BRANCH}/{file})"]
    if module:
        api = relative(f"api/{module}.md", PAGES[file])
        links.append(f"[API of `nsl_repro.{module}`]({api})")
    links += next_idea(file)
    return markdown(":::{container} page-links\n" + " ".join(links) + "\n:::")


def shown_cells(nb, file: str, module: str | None) -> list:
    "The cells of a notebook as the site shows them: links resolved, setup and experiments folded."
    cells, section, experiment = [], "", file.startswith("nbs/experiments/")
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = cell.source.replace(BADGE.format(url=colab_url(file)), "").rstrip()
            cell.source = relink(text, file)
            section = (re.findall(r"(?m)^##+ (.*)", cell.source) or [section])[-1]
            cells.append(cell)
        elif cell.cell_type == "code":
            if experiment and re.search(r"^answer\(", cell.source, re.M):
                continue  # the page has it already
            title = section or heading(file)[0]
            alt = f"Figure: {re.sub(r'[$`*]', '', title)}"
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
            if "parameters" in cell.metadata.get("tags", []):
                cells.append(markdown(parameter_table(file)))
            made = code_cells(cell, module, file)
            if made and (is_setup(cell.source) or (not section and PAGES[file] != "index")):
                fold(cell, "Imports and setup")
            elif made and experiment:
                fold(cell, "Show the code")
            cells += made
    return merged(cells)


def merged(cells: list) -> list:
    "Folded cells that follow each other, and of which the earlier shows nothing, as one."
    kept = []
    for cell in cells:
        before = kept[-1] if kept else None
        if before is not None and is_folded(before) and is_folded(cell) and not before.outputs:
            cell.source = f"{before.source}\n\n\n{cell.source}"
            cell.metadata["mystnb"] |= prompt(before)
            kept.pop()
        kept.append(cell)
    return kept


def is_folded(cell) -> bool:
    return "hide-input" in cell.metadata.get("tags", [])


def prompt(cell) -> dict[str, str]:
    return {k: v for k, v in cell.metadata["mystnb"].items() if k.startswith("code_prompt")}


def notebook_page(file: str) -> str:
    """A notebook as the site shows it: without hidden cells and directives, with links above it and
    above each exported cell; an experiment with its answer, a lesson with a figure on top."""
    nb = copy.deepcopy(read(file))
    module = next((m for m, f in MODULES.items() if f == file), None)
    cells = shown_cells(nb, file, module)
    top = [page_links(file, module)]
    if file.startswith("nbs/experiments/"):
        top = [markdown(answer_block(file)[0]), *top]
    elif PAGES[file].partition("/")[0] in LESSONS:
        top += lead(cells, file)
    title, line, rest = re.match(
        r"(?s)(# [^\n]*\n)\s*((?:>[^\n]*\n?)*)(.*)", cells[0].source
    ).groups()
    cells[0].source = f"{title}\n{line}"
    cells[1:1] = [*top, *([markdown(rest.strip())] if rest.strip() else [])]
    if PAGES[file] == "index":  # the picture, and beside it the first lines to type
        cells[1], cells[2] = cells[2], cells[1]
        tree = "\n".join([*SECTIONS, *AFTER_SECTIONS])
        cells.append(markdown(f"```{{toctree}}\n:hidden:\n\n{tree}\n```"))
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for number, cell in enumerate(nb.cells):  # the same at every build: unchanged pages stay
        cell["id"] = f"cell-{number}"
    return nbformat.writes(nb)


def cards(entries: list[tuple[str, str, str]]) -> str:  # (title, file in the sources, line)
    "A list of pages, each with what it is about."
    items = "\n".join(f"- **[{title}]({file})**\n\n  {line}\n" for title, file, line in entries)
    return f"::::{{container}} cards\n{items}::::\n"


def section_page(page: str) -> str:
    "What is in a section."
    title, line = SECTIONS[page]
    files = [
        file for file, name in PAGES.items() if posixpath.dirname(name) == posixpath.dirname(page)
    ]
    names = {
        f: (f"{Path(f).stem[:2]} · " if Path(f).stem[:2].isdigit() else "") + heading(f)[0]
        for f in files
    }
    tree = "\n".join(f"{names[f]} </{PAGES[f]}>" for f in files)
    entries = []
    for f in files:
        line_of = heading(f)[1]
        if page == "experiments/index":
            line_of += f"\n\n  {answer_block(f)[1]}"
        entries.append((names[f], relative(f"{PAGES[f]}.ipynb", page), line_of))
    return f"# {title}\n\n{line}\n\n{cards(entries)}\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"


def constants(module: str) -> str:
    "The constants of a module, each with the comment behind it."
    text = (ROOT / "nsl_repro" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    found = []
    for name in (
        n.rpartition(".")[2] for n in NAMES if n.rpartition(".")[0] == f"nsl_repro.{module}"
    ):
        if match := re.search(
            rf"(?m)^{name}\b(?:: [^=\n]*)? = (?P<value>[^#\n]*?)(?:  # (?P<comment>.*))?$", text
        ):
            value = (
                f"   :value: {match['value']}\n"
                if match["value"].count("(") == match["value"].count(")")
                and "{" not in match["value"]
                else ""
            )
            found.append(
                f".. py:data:: {name}\n   :module: nsl_repro.{module}\n{value}\n   "
                f"{to_rst(match['comment'] or '')}\n"
            )
    return "\n.. rubric:: Constants\n\n" + "\n".join(found) if found else ""


def api_page(module: str) -> str:
    "A module: what its docstrings, type hints and comments say."
    file = MODULES[module]
    return (
        f"# nsl_repro.{module}\n\n:::{{container}} page-links\n[Explained, derived and tested: "
        f"{heading(file)[0]}]({relative(PAGES[file] + '.ipynb', 'api/index')})"
        f" [GitHub]({GITHUB}/blob/{BRANCH}/nsl_repro/{module.replace('.', '/')}.py)\n:::\n\n"
        f"```{{eval-rst}}\n.. automodule:: nsl_repro.{module}\n   :members:\n   "
        f":undoc-members:\n{constants(module)}\n```\n"
    )


def api_index() -> str:
    "All modules."
    names = sorted(MODULES, key=MODULES.get)
    entries = []
    for module in names:
        file = MODULES[module]
        notebook = relative(f"{PAGES[file]}.ipynb", "api/index")
        line = f"{heading(file)[1]} [Notebook]({notebook})"
        entries.append((f"nsl_repro.{module}", f"{module}.md", line))
    tree = "\n".join(names)
    return (
        "# API\n\nEvery public name of the library: signature, shapes, units, errors and where it "
        "comes from. *source* leads to the cell of the"
        f" notebook that defines it.\n\n{cards(entries)}\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )


def as_png(figure) -> bytes:
    "A figure of matplotlib, sharp on screens of twice the pixels."
    import matplotlib.pyplot as plt

    picture = io.BytesIO()
    figure.savefig(picture, dpi=190, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return picture.getvalue()


def results() -> str:
    "The page of all results, and its pictures."
    from nsl_repro.results.ledger import load_published
    from nsl_repro.results.pages import plot_findings
    from nsl_repro.results.site import results_page

    pictures = {}
    for papers, name in (("nsl", "Neural similarity"), ("pddm", "PDDM")):
        PICTURES[f"findings-{papers}.png"] = as_png(plot_findings(load_published(), papers).figure)
        pictures[f"{name}: every difference with its interval"] = f"findings-{papers}.png"
    return results_page(pictures=pictures)


def assemble() -> None:
    "Write all sources, and remove those whose origin is gone."
    import matplotlib

    matplotlib.use("agg")
    made: dict[str, str | bytes] = {}
    for file, page in PAGES.items():
        if file.endswith(".ipynb"):
            made[f"{page}.ipynb"] = notebook_page(file)
        else:
            made[f"{page}.md"] = relink((ROOT / file).read_text(encoding="utf-8"), file)
    made |= {f"{page}.md": section_page(page) for page in SECTIONS}
    made |= {f"api/{module}.md": api_page(module) for module in MODULES}
    made |= {"api/index.md": api_index(), "results.md": results()}
    made |= PICTURES
    made |= {f"files/{name}": path.read_bytes() for name, path in FILES.items()}
    for name, content in made.items():
        path, content = SOURCE / name, content.encode() if isinstance(content, str) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in SOURCE.rglob("*.*"):
        name = path.relative_to(SOURCE)
        if path.is_file() and name.as_posix() not in made:
            path.unlink()
            (SOURCE.parent / "html" / name).with_suffix(".html").unlink(missing_ok=True)
