# `make help` lists the targets. Every path is relative, so a checkout may lie under a folder with spaces.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python that makes the environment: make setup PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The commands in dvc.yaml say `python` and mean this one.
DVC := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc

# Nothing is reported to anyone: DVC, dvclive and its relatives, Hugging Face's libraries.
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@echo 'pathsynth: a reproducible benchmark of text-to-tissue-image synthesis'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(READY) ## make the environment in .venv (again only when requirements.txt has changed)
	@echo 'The environment in .venv is ready.'

.PHONY: repro
repro: $(READY) ## run the benchmark: data, classifiers, LoRA, images, scores, report; then sum it up
	$(DVC) repro
	$(BIN)/python -m pathsynth.cli.summary

.PHONY: report
report: $(READY) ## bring the scores up to date, make the report anew and say where it is
	$(DVC) repro headline
	$(BIN)/python -m stages.report --params params.yaml --metrics metrics --plots plots --logs logs --out reports/report.html
	@echo 'The report is reports/report.html: open it in a browser.'

.PHONY: compare
compare: $(READY) ## compare the LoRA configurations that were run
	$(BIN)/python -m pathsynth.compare.experiments

.PHONY: bench
bench: $(READY) ## measure speed against the usual ways, on this machine
	$(BIN)/python -m benchmarks

.PHONY: test
test: $(READY) ## run the tests
	$(BIN)/python -m pytest -m 'not gpu' --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: test-gpu
test-gpu: $(READY) ## run the checks that need a GPU, at Stable Diffusion 1.5's size
	$(BIN)/python -m pytest -m gpu

.PHONY: lint
lint: $(READY) ## check style, format and types, and packages for known weaknesses
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

.PHONY: faults
faults: $(READY) ## end every stage at 20 random moments and start it again, and try full disks
	PATHSYNTH_FAULTS=20 $(BIN)/python -m pytest -s tests/pipeline/test_faults.py tests/generation/test_long_run.py tests/pipeline/test_pipeline.py

.PHONY: fuzz
fuzz: $(READY) ## try 20 000 damaged files on every reader, and properties on as many cases
	HYPOTHESIS_PROFILE=many $(BIN)/python -m pytest tests/pipeline/test_fuzz.py tests/pipeline/test_properties.py

.PHONY: verify
verify: $(READY) ## run the benchmark anew in a clone and compare all it makes with what is committed
	rm -rf scratch/verify
	git clone --quiet . scratch/verify
	cd scratch/verify && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	cd scratch/verify && "$(CURDIR)/$(BIN)/python" -m pathsynth.compare.experiments --readme README.md
	cd scratch/verify && git diff --stat --exit-code
	@echo 'verified: dvc.lock, metrics, plots and README are what a fresh run gives'

.PHONY: clean
clean: ## remove caches, logs, scratch files and what interrupted runs have saved; data, models and .venv stay
	rm -rf logs scratch dist build .mypy_cache .ruff_cache .pytest_cache .coverage *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
		|| { echo 'error: $(PYTHON) is missing or older than Python 3.11; name another: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
		|| { echo 'error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --requirement requirements.txt
	@touch $@
