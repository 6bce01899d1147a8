# Two commands matter: `make run` and `make test`. Both set up what they need first and are cheap the second time.
PY ?= python3
# Installed first and alone, so that pip, uv and any index setting agree on one build (CPU or CUDA) of it.
TORCH ?= $(shell grep '^torch==' requirements.lock)
# Test processes; each one computes with one thread.
WORKERS ?= 2
UV := $(shell command -v uv 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
ifdef UV
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
else
# Byte code is made at the first import instead of for 1.8 GB at once (uv does the same).
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
endif

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-readme test-faults check bench bench-sft bench-pref bench-rl format tree tiny clean bench-needle bench-callbacks bench-gpu

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(VENV)/.ok: requirements.lock pyproject.toml
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Nexus needs Python 3.11 or newer; name one: make PY=python3.11 ..." >&2; exit 1; }
	@echo "setting up $(VENV) from requirements.lock (once; a minute or two plus the download)"
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements.lock "$(TORCH)"
	$(INSTALL) -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test-ok: $(VENV)/.ok requirements-test.lock
	$(INSTALL) -r requirements-test.lock
	@touch $@

run: $(VENV)/.ok ## set up, then teach the shipped tiny model to call tools: train, measure before and after, package
	$(BIN)/python -m nexus.train +capability=tools

test: $(VENV)/.test-ok ## set up, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-all: $(VENV)/.test-ok ## the tests, with the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -F

test-readme: $(VENV)/.test-ok ## run the README's commands as written and check its figures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -F -T readme

test-faults: $(VENV)/.test-ok ## kills, damage, storms of signals, full disks, heat and bad numbers in full counts, an hour of one core by estimate
	OMP_NUM_THREADS=1 NEXUS_FAULTS=full $(BIN)/python -m pytest -F -s -m faults

check: $(VENV)/.test-ok ## lint, format, types, docstrings, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet nexus
	$(BIN)/lint-imports
	$(BIN)/python -m tests.architecture.readme_tree --check

bench: bench-sft bench-pref bench-rl ## all three benchmarks, twenty minutes by estimate

bench-sft: $(VENV)/.test-ok ## speed and memory of fine-tuning against TRL and a bare loop, about two minutes
	$(BIN)/python -m tests.benchmarks.bench_sft

bench-pref: $(VENV)/.test-ok ## DPO and ORPO against TRL and a bare loop, ten minutes by estimate
	$(BIN)/python -m tests.benchmarks.bench_pref

bench-rl: $(VENV)/.test-ok ## GRPO steps and rollouts against TRL, transformers and a bare loop, seven minutes by estimate
	$(BIN)/python -m tests.benchmarks.bench_rl

bench-gpu: $(VENV)/.test-ok ## speed and memory of 0.5 B, 1.5 B and 7 B shapes on a GPU, against the memory plan
	$(BIN)/python -m tests.benchmarks.bench_gpu

bench-needle: $(VENV)/.test-ok ## retrieval beyond the trained length, with and without scaled positions, six minutes by estimate
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.needle

bench-callbacks: $(VENV)/.test-ok ## what the callbacks cost of a step of 100 ms, two minutes by estimate
	$(BIN)/python -m tests.benchmarks.bench_callbacks

format: $(VENV)/.test-ok ## rewrite the sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: $(VENV)/.ok ## rewrite the tree in README.md from the files' docstrings
	$(BIN)/python -m tests.architecture.readme_tree

# A stage whose package stands is kept and one that was interrupted goes on, so that `make tiny` can be repeated after any end.
stage = test -d outputs/$(1)/package || if test -d outputs/$(1)/checkpoints; then $(BIN)/python -m nexus.train resume=outputs/$(1); \
	else rm -rf outputs/$(1) && $(BIN)/python -m nexus.train $(2) run_dir=outputs/$(1); fi

tiny: $(VENV)/.ok ## rebuild the shipped tiny model from nothing: tokenizer, three stages of training, package (about three hours; goes on where it was)
	$(BIN)/python -m nexus.data.synthetic.tokenizer OUT=nexus/assets/nexus_tiny
	$(call stage,nexus_tiny,experiment=pretrain_nexus_tiny)
	$(call stage,nexus_tiny_more,experiment=pretrain_nexus_tiny_more base_model.path=outputs/nexus_tiny/package)
	$(call stage,nexus_tiny_pieces,experiment=pretrain_nexus_tiny_pieces base_model.path=outputs/nexus_tiny_more/package)
	for file in outputs/nexus_tiny_pieces/package/*; do test $$(basename $$file) = README.md || cp $$file nexus/assets/nexus_tiny/; done  # the card tells of all stages

clean: ## remove the virtual environment, builds and caches; outputs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
