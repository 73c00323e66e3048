"""The badge and the install cell that let a notebook start in Google Colab: `python docs/colab.py`
puts them into every notebook, once."""

import argparse
import copy
import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "nsl-repro/nsl_repro"
REQUIREMENT = f"nsl_repro[notebooks] @ git+https://github.com/{REPOSITORY}"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"
INSTALL = f"""#| hide
import os

if "COLAB_RELEASE_TAG" in os.environ:  # install the library and what its notebooks need
    %pip install -q "{REQUIREMENT}"\
"""


def colab_url(file: str) -> str:
    "Where Colab opens a notebook of the main branch."
    return f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{file}"


def prepare(
    nb: dict, file: str
) -> bool:  # (a notebook as JSON, its path in the repository) -> whether anything had to be changed
    "Give a notebook its badge, at the end of the title cell, and its install cell right below."
    before = copy.deepcopy(nb)
    title, *rest = nb["cells"]
    text = [
        line
        for line in "".join(title["source"]).splitlines()
        if not line.startswith("[![Open in Colab]")
    ]
    title["source"] = "\n".join(text).rstrip() + f"\n\n{BADGE.format(url=colab_url(file))}"
    install = [
        cell
        for cell in rest
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).startswith(INSTALL.splitlines()[0])
        and "%pip install" in "".join(cell["source"])
    ]
    cell = (
        install[0]
        if install
        else {
            "cell_type": "code",
            "execution_count": None,
            "id": hashlib.sha256(f"colab {file}".encode()).hexdigest()[:8],
            "metadata": {},
            "outputs": [],
        }
    )
    cell["source"] = INSTALL
    for c in (title, cell):
        c["source"] = c["source"].splitlines(keepends=True)
    nb["cells"] = [title, cell, *(c for c in rest if c not in install)]
    return nb != before


def notebooks() -> list[Path]:
    "All of them."
    return sorted(
        p for p in (ROOT / "nbs").rglob("[!_.]*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )


def main() -> None:
    """Put badge and cell into the notebooks, or with `--check` say which lack them. Outputs are
    kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a notebook lacks them"
    )
    check = parser.parse_args().check
    changed = []
    for path in notebooks():
        nb = json.loads(path.read_text(encoding="utf-8"))
        if prepare(nb, path.relative_to(ROOT).as_posix()):
            changed.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(
                    json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n",
                    encoding="utf-8",
                )  # as nbdev writes them
    print("\n".join(changed) or "every notebook has its badge and its install cell")
    raise SystemExit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
