"""`python docs` builds the site in `_docs/html`; every warning is an error."""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "_docs"
(BUILT / "source").mkdir(parents=True, exist_ok=True)
status = main(
    [
        "-c",
        str(HERE),
        "-d",
        str(BUILT / "doctrees"),
        "-n",
        "-W",
        "--keep-going",
        "-q",
        *sys.argv[1:],
        str(BUILT / "source"),
        str(BUILT / "html"),
    ]
)
if status:
    shutil.rmtree(
        BUILT / "doctrees", ignore_errors=True
    )  # else the next build would forget the warnings of this one
sys.exit(status)
