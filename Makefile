PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORES ?= 2

.PHONY: help install demo test test-all lint format clean

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
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadgroup -m "not slow"

test-all: install ## all tests
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadgroup

lint: install ## style of Python and Snakemake code
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: install ## mend the style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/snakefmt Snakefile workflow

clean: ## remove the results, keep the environment
	rm -rf results .snakemake
