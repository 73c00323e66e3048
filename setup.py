"""Packaging from settings.ini. The experiment notebooks and the ledger travel inside the wheel."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser()
cfg.read(here / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
metric = cfg[
    "metric_requirements"
].split()  # PDDM beside pytorch-metric-learning, pre-trained backbones
run = metric + cfg["run_requirements"].split()  # the experiments
onnx, tracking = cfg["onnx_requirements"].split(), cfg["tracking_requirements"].split()
faiss = cfg["faiss_requirements"].split()  # an index whose lists PDDM re-ranks
atlas = run + faiss + cfg["atlas_requirements"].split()  # what nbs/atlas is checked against
notebooks = (
    atlas + onnx + tracking + cfg["notebooks_requirements"].split()
)  # all notebooks, in Colab or elsewhere
docs = notebooks + [
    f"{need}; python_version >= '3.11'" for need in cfg["docs_requirements"].split()
]  # the site; its parsers need that Python
extras = {
    "metric": metric,
    "run": run,
    "onnx": onnx,
    "faiss": faiss,
    "tracking": tracking,
    "atlas": atlas,
    "notebooks": notebooks,
    "docs": docs,
    "dev": docs + cfg["dev_requirements"].split(),
}
shipped = {
    "nsl_repro._experiments": "nbs/experiments",
    "nsl_repro._data": "data",
}  # folders that travel as packages
shipped = {package: folder for package, folder in shipped.items() if (here / folder).is_dir()}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="MIT",
    keywords=cfg["keywords"],
    packages=[*find_packages(include=["nsl_repro", "nsl_repro.*"]), *shipped],
    package_dir=shipped,
    package_data={
        "nsl_repro": ["py.typed"],
        "nsl_repro.nsl": ["playground.html", "playground.js"],
        "nsl_repro._experiments": ["*.ipynb"],
        "nsl_repro._data": [
            "paper_results.json",
            "methods.json",
            "plan.json",
            "reliability.json",
            "results/*.json",
        ],
    },
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        *[f"Programming Language :: Python :: 3.{v}" for v in range(10, 14)],
    ],
    zip_safe=False,
)
