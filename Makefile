# Two commands: `make reproduce` and `make test`. Both make .venv themselves; Python 3.10 or newer and make are all they need.
PYTHON ?= python3
EXPERIMENT ?= nsl_cifar
DATASET ?= digits
PRESET ?= quick
SEEDS ?=
METHODS ?=
DATA ?=
OUTPUT ?=
ARGS ?=

BIN := .venv/bin
READY := .venv/.installed
unexport PYTHONPATH PYTHONHOME
.PHONY: help reproduce bench test lint docs check-docs notebooks readme package lab clean

help:
	@echo "make reproduce  run an experiment and print its table (EXPERIMENT=$(EXPERIMENT) DATASET=$(DATASET) PRESET=$(PRESET) SEEDS= METHODS= DATA= OUTPUT= ARGS=)"
	@echo "make bench      measure what the dynamic convolution costs on this machine (PRESET=$(PRESET))"
	@echo "make test       check everything that is claimed"
	@echo "make lint       check notebooks and tests with ruff, and the library's types with mypy"
	@echo "make docs       build the site in _docs/html"
	@echo "make check-docs look at the site and at JupyterLab in a real browser (Chromium)"
	@echo "make notebooks  clean the notebooks and regenerate the library from them"
	@echo "make readme     fill in the README's tables from the ledger"
	@echo "make package    build the package and check it"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make clean      remove what make made (never data/)"

reproduce: $(READY)
	$(BIN)/nsl-repro run "$(EXPERIMENT)" -p dataset="$(DATASET)" -p preset="$(PRESET)" $(if $(SEEDS),-p seeds="$(SEEDS)") $(if $(METHODS),-p methods="$(METHODS)") $(if $(DATA),-p data_root="$(DATA)") $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)
	$(BIN)/nsl-repro table "$(EXPERIMENT)" --dataset "$(DATASET)" --preset "$(PRESET)" $(if $(OUTPUT),-o "$(OUTPUT)")

bench: $(READY)
	$(BIN)/nsl-repro run bench_dynamic -p preset="$(PRESET)" -p resume=false $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)
	$(BIN)/nsl-repro table bench_dynamic --preset "$(PRESET)" $(if $(OUTPUT),-o "$(OUTPUT)")
	$(BIN)/nsl-repro table bench_dynamic_step --preset "$(PRESET)" $(if $(OUTPUT),-o "$(OUTPUT)")

test: $(READY)
	$(BIN)/python -m pytest tests/test_sync.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs --skip_folder_re '^([_.]|experiments|atlas)' --skip_file_re '^([_.]|08_triton)'
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs/08_triton.ipynb  # needs a process in which nobody has imported Triton yet
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_experiments.py  # starting kernels takes most of the time: two at once
	$(BIN)/python -m pytest --ignore=tests/test_sync.py --ignore=tests/test_experiments.py --ignore=tests/test_docs.py --ignore=tests/test_lab.py

docs: $(READY)
	$(BIN)/python docs

check-docs: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/test_docs.py tests/test_lab.py  # builds the site first; pictures in _docs/screenshots

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy

notebooks: $(READY)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

readme: $(READY)
	$(BIN)/python -c 'from nsl_repro.pages import update_readme; print("changed" if update_readme() else "nothing to change")'

package: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_packaging.py

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

clean:
	rm -rf .venv _docs build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# pip's build of the project uses the pinned setuptools that has just been installed, so that constraints.txt decides everything
$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) is not there: install Python 3.10 or newer (on Debian: apt install python3 python3-venv), or name one with PYTHON="; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.10 or newer is needed: name one with PYTHON="; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) cannot make virtual environments: on Debian, apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $(READY)
