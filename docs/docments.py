"""A Sphinx extension: autodoc for a library whose docstrings are Markdown and whose parameters are
described by comments (docments)."""

import inspect
import re
from dataclasses import is_dataclass
from functools import cached_property
from typing import get_type_hints

from docutils import nodes
from fastcore.docments import docments
from pydantic import BaseModel
from sphinx import addnodes
from sphinx.util.typing import stringify_annotation

CODE = r"`[^`\n]+`"
MATHS = r"\$[^$\n]+\$"


def to_rst(text: str) -> str:
    "Code spans, formulas and everything else of a docstring in reStructuredText."

    def convert(match):
        found = match[0]
        if found[0] == "`":
            return f"``{found[1:-1].strip()}``\\ "
        if found[0] == "$":
            return f":math:`{found[1:-1]}`\\ "
        return "\\" + found

    return re.sub(rf"{CODE}|{MATHS}|[\\*_|`]", convert, text)


def paragraph(text: str) -> str:
    """A paragraph, or a heading and lines that must stay as they are: the command line's, which
    start with a backspace."""
    if not text.startswith("\b"):
        return to_rst(text)
    heading, _, lines = text.removeprefix("\b").strip("\n").partition("\n")
    return f"{to_rst(heading)}:\n\n{lines}"


def has_fields(obj) -> bool:
    "Whether a class is described by its fields: a dataclass, a named tuple or a pydantic model."
    return inspect.isclass(obj) and (
        is_dataclass(obj) or issubclass(obj, BaseModel) or hasattr(obj, "_fields")
    )


def parameters(
    obj,
) -> dict[str, str]:  # name -> comment or ''; 'return' among them where it is described
    "The parameters of a function or class and what their comments say."
    if has_fields(obj):
        names = list(
            getattr(obj, "model_fields", None)
            or getattr(obj, "__dataclass_fields__", None)
            or obj._fields
        )
        said = {}
    else:
        names = [p.name for p in inspect.signature(obj).parameters.values() if p.name != "self"]
        said = {name: what["docment"] for name, what in docments(obj, full=True).items()}
    in_source = dict(
        re.findall(r"(?m)^ +\**(\w+)\s*[:=].*?  # (.*)$", inspect.getsource(obj))
    )  # fields, and **options
    found = {name: said.get(name) or in_source.get(name) or "" for name in names}
    return {**found, "return": said["return"]} if said.get("return") else found


def plain_types(obj) -> dict[str, str]:  # name -> its type
    """The types of parameters that are annotated with more than a type: pydantic's checks, the
    command line's options."""
    owner = obj.__init__ if inspect.isclass(obj) and not has_fields(obj) else obj
    raw = inspect.get_annotations(owner)
    if "Annotated[" not in " ".join(map(str, raw.values())):
        return {}
    return {
        name: stringify_annotation(hint, "smart")
        for name, hint in get_type_hints(owner).items()
        if name in raw and name != "return"
    }


def help_texts(command) -> dict[str, str]:  # name -> help
    "What the arguments and options of a function of the command line say."
    hints = {} if inspect.isclass(command) else inspect.get_annotations(command)
    texts = {
        name: getattr(next(iter(getattr(hint, "__metadata__", ())), None), "help", None)
        for name, hint in hints.items()
    }
    return {name: text for name, text in texts.items() if text}


def describe(app, what, name, obj, options, lines):
    "Docstrings become reStructuredText, comments become fields."
    if what in ("data", "attribute"):  # the docstring of its type
        lines.clear()
        return
    lines[:] = "\n\n".join(map(paragraph, "\n".join(lines).strip().split("\n\n"))).splitlines()
    if what in ("function", "class", "method", "exception") and (
        inspect.isclass(obj) or inspect.isroutine(obj)
    ):
        try:
            described = {**parameters(obj), **help_texts(obj)}
        except (
            OSError,
            TypeError,
            ValueError,
        ):  # no source, no signature: an alias, a class made by a call
            return
        if lines and lines[-1]:
            lines.append("")
        for parameter, text in described.items():
            text = to_rst(text.replace("\n", " "))
            lines.append(
                f":returns: {text}" if parameter == "return" else f":param {parameter}: {text}"
            )
        lines.extend(
            f":type {name}: {kind}" for name, kind in plain_types(obj).items() if name in described
        )
        lines.append("")


def skip(app, what, name, obj, skip, options):
    """Of a class: its methods and properties. Its fields are described as parameters, and other
    attributes are its own business."""
    shown = (
        inspect.isroutine(obj)
        or isinstance(obj, (property, cached_property))
        or inspect.isclass(obj)
    )
    return (
        True if what in ("class", "exception") and not shown or name == "model_post_init" else None
    )


def link_names(app, doctree):
    "A public name of the library in code type leads to its page."
    for literal in list(doctree.findall(nodes.literal)):
        target = app.config.docments_names.get(literal.astext().removesuffix("()"))
        inside = literal.parent
        while inside is not None and not isinstance(
            inside, (nodes.reference, nodes.title, addnodes.pending_xref)
        ):
            inside = inside.parent
        if target and inside is None:
            link = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="mod" if target.count(".") == 2 else "obj",
                reftarget=target,
                refexplicit=True,
            )
            literal.replace_self(link)
            link += literal


def mark_deviations(app, doctree):
    "A paragraph that starts **Deviation** is a callout."
    for paragraph in doctree.findall(nodes.paragraph):
        first = next((child for child in paragraph.children if child.astext()), None)
        if isinstance(first, nodes.strong) and first.astext().startswith("Deviation"):
            paragraph["classes"].append("deviation")


def keep_short_cells_whole(app, doctree):
    "Numbers with their intervals, and single words, are not broken over lines."
    for entry in doctree.findall(nodes.entry):
        heading = isinstance(entry.parent.parent, nodes.thead)
        if len(entry.astext()) <= 13 and not heading:
            entry["classes"].append("short")
        for text in list(entry.findall(nodes.Text)):
            words = text.replace(" ± ", "\u00a0±\u00a0")
            if heading:  # names may be broken behind their underscores
                words = words.replace("_", "_\u200b")
            if words != text:
                text.parent.replace(text, nodes.Text(words))


def setup(app):
    app.add_config_value("docments_names", {}, "env")
    app.add_config_value("docments_code", "", "env")
    app.connect("autodoc-process-docstring", describe)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", link_names)
    app.connect("doctree-read", mark_deviations)
    app.connect("doctree-read", keep_short_cells_whole)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
