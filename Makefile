# `make help` lists the targets. Every path is relative, so a checkout may lie under a folder with spaces.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python of the environment: make setup PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
APP_READY := .venv/.app-ready
# A faster allocator, where it is installed (docs/benchmarks.md).
ALLOCATOR := $(firstword $(wildcard $(addsuffix /libtcmalloc_minimal.so.4,/usr/lib/$(shell uname -m)-linux-gnu /usr/lib64)))
# Commands in dvc.yaml call `python`, which must be the one in .venv.
DVC := $(if $(ALLOCATOR),LD_PRELOAD="$(ALLOCATOR)$${LD_PRELOAD:+:$$LD_PRELOAD}") PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc
REPORT := $(BIN)/python -m stages.report --params params.yaml --metrics metrics --plots plots --logs logs --anchors metrics/anchors \
	--out reports/report.html

# DVC and torch ask for both. A shell need not set USER, and a container may run as a user without a name, whose home is /.
export USER := $(or $(USER),$(shell id -un 2>/dev/null),user)
export HOME := $(or $(filter-out /,$(HOME)),$(CURDIR)/.home)
# Under Python's safe path, `python -m` would not find this folder.
export PYTHONSAFEPATH :=

# No telemetry from DVC, DVCLive or Hugging Face's libraries.
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@echo 'pathsynth: a reproducible benchmark of text-to-tissue-image synthesis'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s  %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(READY) ## create the environment in .venv, or update it when requirements.txt has changed
	@echo 'The environment in .venv is ready.'

.PHONY: repro
repro: $(READY) ## run the benchmark: data, classifiers, LoRA, images, scores, report
	$(BIN)/python -m pathsynth check
	$(DVC) repro
	@# DVC skips this stage where all of its inputs are as committed
	$(REPORT)
	$(BIN)/python -m pathsynth summary

.PHONY: report
report: $(READY) ## run what is out of date, and write reports/report.html
	$(DVC) repro headline
	$(REPORT)
	@echo 'Open reports/report.html in a browser.'

.PHONY: compare
compare: $(READY) ## compare the LoRA configurations that were run
	$(BIN)/python -m pathsynth compare

.PHONY: atlas
atlas: $(READY) ## write reports/atlas.html: accepted images by class, look-alikes and a quiz
	$(BIN)/python -m pathsynth atlas
	@# again, with a link to the atlas
	$(REPORT)

.PHONY: anchors
anchors: $(READY) ## score real images, copies and shuffled images, to show what each score can see
	$(DVC) repro observe_real
	$(BIN)/python -m pathsynth anchors

.PHONY: leaderboard
leaderboard: $(READY) ## check the submissions and write leaderboard/README.md
	$(BIN)/python -m pathsynth leaderboard $(LEADERBOARD_OPTIONS)

.PHONY: setup-app
setup-app: $(APP_READY) ## add Gradio to the environment, for the page of `make app`
	@echo 'Gradio is installed in .venv.'

.PHONY: app
app: $(APP_READY) ## draw images in the browser, on a page that only this machine can open
	$(BIN)/python -m pathsynth app $(APP_OPTIONS)

.PHONY: bench
bench: $(READY) ## benchmark against stock diffusers, torchvision and numpy
	$(BIN)/python -m benchmarks

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

.PHONY: test
test: $(READY) ## run the tests that a code change is likely to break
	$(PYTEST) -m 'not slow and not gpu'

.PHONY: test-all
test-all: $(READY) ## run all tests except those for GPUs and `make faults`: adds servers, several processes, kills and a browser
	$(PYTEST) -m 'not gpu'

.PHONY: test-gpu
test-gpu: $(READY) ## run the tests that need a GPU, at the size of Stable Diffusion 1.5
	$(BIN)/python -m pytest -m gpu

.PHONY: lint
lint: $(READY) ## check style, format, types, and packages for known vulnerabilities
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

.PHONY: faults
faults: $(READY) ## kill and restart every stage at 20 random moments; fill its disk
	PATHSYNTH_FAULTS=20 $(BIN)/python -m pytest -s tests/pipeline/test_faults.py tests/generation/test_filtering.py tests/pipeline/test_pipeline.py

.PHONY: fuzz
fuzz: $(READY) ## feed up to 20 000 damaged files to every reader
	HYPOTHESIS_PROFILE=many $(BIN)/python -m pytest tests/pipeline/test_fuzz.py tests/pipeline/test_properties.py

.PHONY: base
base: $(READY) ## train the bundled base model again from scratch (base/README.md)
	$(BIN)/python -m stages.train_base --params base/params.yaml --out base --metrics base/metrics.json

.PHONY: verify
verify: $(READY) ## run the benchmark in a clone and compare everything with the last commit, made on the same kind of CPU
	rm -rf scratch/verify
	git clone --quiet . scratch/verify
	cd scratch/verify && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	cd scratch/verify && "$(CURDIR)/$(BIN)/python" -m pathsynth compare --fill README.md --fill docs/results.md --fill docs/scores.md
	cd scratch/verify && git diff --stat --exit-code
	@echo 'verified: a fresh run gives the committed dvc.lock, metrics, plots and tables'

.PHONY: clean
clean: ## remove caches, logs, scratch files and checkpoints; data, models and .venv stay
	rm -rf logs scratch dist build .mypy_cache .ruff_cache .pytest_cache .coverage *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(READY): requirements.txt
	@command -v git > /dev/null || { echo 'error: git is missing; on Debian and Ubuntu: apt install git' >&2; exit 1; }
	@git rev-parse --git-dir > /dev/null \
		|| { echo 'error: DVC needs a git repository. Clone this one instead of downloading a ZIP, or make one here:' \
			'git init && git add --all && git commit --message start' >&2; exit 1; }
	@git rev-parse --verify --quiet HEAD > /dev/null \
		|| { echo 'error: this git repository has no commit yet: git add --all && git commit --message start' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
		|| { echo 'error: $(PYTHON) is missing or older than Python 3.11; choose one with: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
		|| { echo 'error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --requirement requirements.txt
	@# so that `python -m pathsynth` and `import pathsynth` work in every folder, and under PYTHONSAFEPATH
	@echo '$(CURDIR)' > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pathsynth.pth"
	@touch $@

# Without dependencies: requirements-app.txt lists all of them, and says which of Gradio's limits it ignores.
$(APP_READY): requirements-app.txt $(READY)
	$(BIN)/python -m pip install --no-deps --requirement requirements-app.txt
	@touch $@
