"""The site: `make docs` builds it in `_docs/html` from the notebooks, the docstrings and the
ledger."""

import hashlib
import os
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # reading docstrings needs no GPU

from assemble import GITHUB, MODULES, NAMES, PROJECT, SETTINGS, assemble

assemble()

project = SETTINGS["DEFAULT"]["title"]
author = SETTINGS["DEFAULT"]["author"]
version = release = SETTINGS["DEFAULT"]["version"]
copyright = f"{SETTINGS['DEFAULT']['copyright']}. Version {version}"  # at the foot of every page
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "docments",
]

# pages
smartquotes_action = "D"  # dashes only: H' is a height, not a quotation
nb_execution_mode = "off"  # the notebooks carry their outputs
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
mathjax_path = "mathjax/tex-chtml.js"  # carried along: no other host is asked for anything

# the library
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpick_ignore_regex = [
    ("py:.*", r"(?!nsl_repro\.).*|.*\._\w+")
]  # types of other libraries are not linked: their inventories are on other hosts
short = Counter(name.rpartition(".")[2] for name in NAMES)
docments_names = {
    n.rpartition(".")[2]: n
    for n in NAMES
    if short[n.rpartition(".")[2]] == 1 and not re.fullmatch("[a-z]+", n.rpartition(".")[2])
}  # words are words
docments_names |= {name: name for name in [*NAMES, *(f"nsl_repro.{module}" for module in MODULES)]}

docments_code = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
).hexdigest()  # another way to build: all pages anew


def linkcode_resolve(domain, info):
    "The source of a name is the cell that defines it."
    name = f"{info['module']}.{info['fullname'].split('.')[0]}"
    return f"../{NAMES[name]}.html#source-{name.rpartition('.')[2]}" if name in NAMES else None


# looks
html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = False
html_copy_source = False
html_use_index = html_domain_indices = False  # the API's pages and the search are the index
html_baseurl = SETTINGS["DEFAULT"]["doc_host"] + SETTINGS["DEFAULT"]["doc_baseurl"] + "/"
html_favicon = "static/logo.svg"
html_context = {"default_mode": "auto"}
html_sidebars = {
    page: [] for page in ("index", "results", "reliability", *PROJECT)
}  # pages without a section
html_theme_options = {
    "logo": {"text": project, "image_light": "static/logo.svg", "image_dark": "static/logo.svg"},
    "icon_links": [{"name": "GitHub", "url": GITHUB, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
