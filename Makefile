PYTHON ?= python3
VENV ?= .venv
# large slides to time the slide stage on; the folder is not in git
SLIDES ?= $(wildcard .bench/*.svs)
BIN := $(VENV)/bin
CORES ?= 2

.PHONY: help install demo test test-all lint format bench-slides clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/.installed: requirements.lock pyproject.toml
	@echo "Installing into $(VENV): PyTorch is large, this takes some minutes once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

install: $(BIN)/.installed ## the environment in .venv, exact versions

demo: install ## from raw synthetic slides to results/demo/{summary.tsv,report.html}
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) results/demo/summary.tsv results/demo/report.html
	@echo "Done: results/demo/summary.tsv, and open results/demo/report.html in a browser."

test: install ## fast tests
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile -m "not slow"

test-all: install ## all tests
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile --durations=40 --durations-min=10

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
