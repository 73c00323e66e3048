# Two commands: `make reproduce` and `make test`. Both make .venv themselves; Python 3.10 or newer and make are all they need.
PYTHON ?= python3
EXPERIMENT ?= nsl_cifar
DATASET ?= digits
PRESET ?= quick
BUDGET ?= 55m
PLAN ?=
SEEDS ?=
METHODS ?=
DATA ?=
OUTPUT ?=
ARGS ?=
UV ?= uv
PYTHONS ?= python3.10 python3.13

BIN := .venv/bin
READY := .venv/.installed
unexport PYTHONPATH PYTHONHOME
.PHONY: help reproduce bench paper test-gpu test soak lint audit lock docs check-docs notebooks readme package lab clean

help:
	@echo "make reproduce  run an experiment and print its table (EXPERIMENT=$(EXPERIMENT) DATASET=$(DATASET) PRESET=$(PRESET) SEEDS= METHODS= DATA= OUTPUT= ARGS=)"
	@echo "make bench      measure what the dynamic convolution costs on this machine (PRESET=$(PRESET))"
	@echo "make paper      fill in the paper's tables: what fits into BUDGET=$(BUDGET), with one GPU (PLAN= DATA= OUTPUT= ARGS=--rehearse)"
	@echo "make test       check everything that is claimed"
	@echo "make test-gpu   check what only a GPU can show"
	@echo "make soak       what must keep working, for hours and with more cases (NSL_SOAK_HOURS=2)"
	@echo "make lint       check the form of notebooks and tests with ruff, and the library's types with mypy"
	@echo "make audit      ask PyPI for known vulnerabilities of everything that is installed"
	@echo "make lock       pin versions and hashes again (needs uv; ARGS='--upgrade-package NAME' moves one)"
	@echo "make docs       build the site in _docs/html"
	@echo "make check-docs look at the site and at JupyterLab in a real browser (Chromium)"
	@echo "make notebooks  clean the notebooks and regenerate the library from them"
	@echo "make readme     fill in the README's tables and the answers of the experiments from the published runs"
	@echo "make package    build the package and install it into empty environments (PYTHONS=$(PYTHONS), as far as they are here)"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make clean      remove what make made (never data/)"

reproduce: $(READY)
	$(BIN)/nsl-repro run "$(EXPERIMENT)" -p dataset="$(DATASET)" -p preset="$(PRESET)" $(if $(SEEDS),-p seeds="$(SEEDS)") $(if $(METHODS),-p methods="$(METHODS)") $(if $(DATA),-p data_root="$(DATA)") $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)

bench: $(READY)
	$(BIN)/nsl-repro run bench_dynamic -p preset="$(PRESET)" -p resume=false $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)
	$(BIN)/nsl-repro table bench_dynamic_step --preset "$(PRESET)" $(if $(OUTPUT),-o "$(OUTPUT)")

paper: $(READY)
	$(BIN)/nsl-repro paper --budget "$(BUDGET)" $(if $(PLAN),--plan "$(PLAN)") $(if $(DATA),-p data_root="$(DATA)") $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)

test-gpu: $(READY)
	$(BIN)/python -m pytest tests/test_gpu.py tests/test_gpu_experiments.py $(ARGS)
	$(BIN)/python -m pytest tests/test_backends.py tests/test_triton_predictor.py -k "cuda or triton or graph" $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest tests/test_sync.py tests/test_style.py tests/test_imports.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs --skip_folder_re '^([_.]|experiments)' --skip_file_re '^([_.]|03_gpu|04_predictor)'  # test_backends runs those
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore=tests/test_sync.py --ignore=tests/test_style.py --ignore=tests/test_imports.py --ignore=tests/test_docs.py --ignore=tests/test_lab.py

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs/data --file_re features --flags notest  # on all photographs: minutes, the first time
	NSL_SOAK=1 NSL_RECORD=data/reliability.json $(BIN)/python -m pytest tests/reliability tests/test_others.py tests/test_experiments.py $(ARGS)

docs: $(READY)
	$(BIN)/python docs

check-docs: $(READY)
	$(BIN)/python -m pytest -n 2 tests/test_docs.py tests/test_lab.py  # builds the site first; pictures in _docs/screenshots

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

audit: $(READY)
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock $(ARGS) || { echo "make audit: failed, for the reason above: a known vulnerability, or PyPI's database cannot be asked from here, and then nothing is known"; exit 1; }

# Both files from one resolution, so that they cannot disagree
lock:
	$(UV) pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header --extra dev --generate-hashes $(ARGS) setup.py -o requirements.lock
	{ echo "# What make installs: the versions in constraints.txt, and the sha256 of every file that may be installed. Made by make lock."; cat requirements.lock; } > requirements.new
	{ echo "# Exact versions of everything, for Python 3.10 to 3.13; requirements.lock holds their hashes. Made by make lock."; grep -v -e '^ ' -e '^#' requirements.new | sed 's/ *\\$$//'; } > constraints.txt
	mv requirements.new requirements.lock

notebooks: $(READY)
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

readme: $(READY)
	$(BIN)/python -c 'from nsl_repro.results.pages import update_readme; from nsl_repro.results.published import why_unchanged; print("changed" if update_readme() else why_unchanged())'
	$(BIN)/python -c 'from nsl_repro.results.answers import update_answers; print(*update_answers() or ["no answer to change"])'

package: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	NSL_PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest tests/test_packaging.py

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

clean:
	rm -rf .venv _docs build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# Every file must have a hash of requirements.lock and be a wheel (no package's code runs while it is installed; Python compiles what is used, when it is used); then the project is built by the setuptools that is there now
$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "$(PYTHON) is not there: install Python 3.10 or newer (on Debian: apt install python3 python3-venv), or name one with PYTHON="; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.10 or newer is needed: name one with PYTHON="; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) cannot make virtual environments: on Debian, apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --no-compile --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $(READY)
