"""Packaging from settings.ini. The experiment notebooks and the ledger travel inside the wheel."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {"run": cfg["run_requirements"].split(), "dev": (cfg["run_requirements"] + " " + cfg["dev_requirements"]).split()}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="MIT",
    keywords=cfg["keywords"],
    packages=[*find_packages(include=["nsl_repro", "nsl_repro.*"]), "nsl_repro._experiments", "nsl_repro._data"],
    package_dir={"nsl_repro._experiments": "nbs/experiments", "nsl_repro._data": "data"},
    package_data={"nsl_repro._experiments": ["*.ipynb"], "nsl_repro._data": ["paper_results.json", "results/*.json"]},
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
