PYTHON ?= python3
VENV ?= .venv
# large slides to time the slide stage on; the folder is not in git
SLIDES ?= $(wildcard .bench/*.svs)
BIN := $(VENV)/bin
# there from the beginning of an installation to its end: what is left of one that was killed is not mended but made anew
UNDERWAY = $(VENV)/.underway
CORES ?= 2

# one thread each: as many processes as cores share the tests
PYTEST = PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SHARED = -n $(CORES) --dist worksteal
# what waits for other processes more than it computes runs beside the rest
WAITING = tests/cluster tests/workflow/test_kill.py

.PHONY: help install demo test test-ci test-waiting test-others test-long test-all lint format bench-slides clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/.installed: requirements.lock pyproject.toml
	@echo "Installing into $(VENV): PyTorch is large, this takes some minutes once."
	@if [ -e $(UNDERWAY) ]; then \
		echo "An installation was cut short there: it begins anew."; \
		find $(VENV)/ -mindepth 1 ! -path $(UNDERWAY) -delete; \
	fi
	@mkdir -p $(VENV) && touch $(UNDERWAY)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@ && rm $(UNDERWAY)

install: $(BIN)/.installed ## the environment in .venv, exact versions

demo: install ## from raw synthetic slides to results/demo/{summary.tsv,report.html}
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/snakemake --cores $(CORES) results/demo/summary.tsv results/demo/report.html
	@echo "Done: results/demo/summary.tsv, and open results/demo/report.html in a browser."

test: install ## fast tests, in five minutes
	$(PYTEST) $(SHARED) -m "not slow and not long"

test-ci: install ## what every change has to pass: the fast and the slow tests (docs/testing.md)
	$(MAKE) --jobs 2 --keep-going --output-sync=target --no-print-directory test-waiting test-others

test-waiting:
	$(PYTEST) -m "not long" $(WAITING) --durations=20 --durations-min=10

test-others:
	$(PYTEST) $(SHARED) -m "not long" $(WAITING:%=--ignore=%) --durations=20 --durations-min=10

test-long: install ## what takes long, to be run before an issue is resolved
	$(PYTEST) $(SHARED) -m long --durations=40 --durations-min=10

test-all: test-ci test-long ## all tests

lint: install ## style of Python and Snakemake code
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: install ## mend the style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/snakefmt Snakefile workflow

bench-slides: install ## speed of the slide stage beside its limits: SLIDES="a.svs b.svs", large ones; CLAM=folder of its checkout
	@test -n "$(SLIDES)" || { echo 'give large slides: make bench-slides SLIDES="a.svs b.svs"'; exit 2; }
	PYTHONPATH=src OMP_NUM_THREADS=1 $(BIN)/python benchmarks/slide_reading.py $(SLIDES)
	PYTHONPATH=src OMP_NUM_THREADS=1 $(BIN)/python benchmarks/slide_tissue.py $(if $(CLAM),--clam $(CLAM)) $(SLIDES)
	PYTHONPATH=src $(BIN)/python benchmarks/encoders.py --threads 1
	PYTHONPATH=src $(BIN)/python benchmarks/encoders.py --threads $(CORES)

clean: ## remove the results, keep the environment
	rm -rf results .snakemake
