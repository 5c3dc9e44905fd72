# Two commands for a fresh machine that has Python >= 3.11, make and git:
#   make reproduce   set up, then show the paper's equivalences and dynamics (4 to 6 minutes, writes report/report.html)
#   make test        set up, then run the tests
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
ARGS ?=
bin := $(VENV)/bin
# They ask for a torch or a triton of their own; without dependencies they take the one that is there.
PEERS := "liger-kernel>=0.8.5,<0.9" "cut-cross-entropy>=25.1.1,<26"

.PHONY: help setup reproduce test test-slow conformance mutants lint format bench peers bench-logprobs bench-losses bench-tokamax bench-train-step lock readme clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the environment (done by every target that needs it)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) was not found. Install Python >= 3.11, or name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) scripts/setup_env.py $(VENV)

reproduce: setup ## verify every equivalence, train the small model, write report/report.html
	@$(bin)/mi-align reproduce $(ARGS)

test: setup ## run the tests
	@$(bin)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: setup ## run the long tests: 100,000 fuzzed inputs an objective
	@$(bin)/python -m pytest -n $(WORKERS) -m slow --dist=load -o faulthandler_timeout=7200 $(ARGS)

conformance: ## compare with torch, transformers, peft and rax (installs them in an environment of their own)
	@$(PYTHON) scripts/setup_env.py .venv-conformance conformance
	@.venv-conformance/bin/python -m pytest tests/conformance $(ARGS)

mutants: setup ## mutate the formulas one by one: the tests must notice
	@$(bin)/python -m tests.mutation $(ARGS)

lint: setup ## format check, lint, types
	@$(bin)/ruff format --check . && $(bin)/ruff check . && $(bin)/mypy

format: setup ## format and fix what can be fixed
	@$(bin)/ruff format . && $(bin)/ruff check --fix .

bench: ## time the objectives beside torch, optax and rax; write benchmarks/results/
	@$(PYTHON) scripts/setup_env.py .venv-conformance conformance
	@.venv-conformance/bin/python benchmarks/objectives.py --write $(ARGS)

peers: ## install Liger and Cut Cross-Entropy beside torch, without the CUDA that they ask for
	@$(PYTHON) scripts/setup_env.py .venv-conformance conformance
	@.venv-conformance/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)

bench-logprobs: peers ## time loss kernels beside torch; write benchmarks/results/
	@.venv-conformance/bin/python benchmarks/logprobs.py --write --methods none --peers torch,torch.compile,cut_cross_entropy $(ARGS)

bench-losses: peers ## time whole preference losses beside Liger; write benchmarks/results/
	@.venv-conformance/bin/python benchmarks/logprobs.py --write --name preference-losses --implementations chunked,plain \
		--methods dpo,dpo_reference_free,mio,infonce_dpo,orpo,simpo --peers liger $(ARGS)

bench-tokamax: ## time loss kernels beside tokamax, in an environment of its own (make PYTHON=python3.12)
	@$(PYTHON) scripts/setup_env.py .venv-tokamax tokamax
	@.venv-tokamax/bin/python benchmarks/logprobs.py --write --name tokamax --implementations chunked,memory_budget,plain,optax \
		--methods none --peers tokamax,tokamax_chunked $(ARGS)

bench-train-step: ## time a whole step of DPO beside TRL's trainer, in an environment of its own
	@$(PYTHON) scripts/setup_env.py .venv-trl trl
	@.venv-trl/bin/python benchmarks/train_step.py --write $(ARGS)

lock: setup ## refresh requirements-dev.txt
	@$(bin)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --group dev pyproject.toml -o requirements-dev.txt

readme: setup ## refresh the README's generated parts
	@$(bin)/python docs/generate.py

clean: ## remove environments and caches
	rm -rf .venv* .pytest_cache .mypy_cache .ruff_cache .hypothesis report
	find . -name __pycache__ -prune -exec rm -rf {} +
