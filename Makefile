# Two commands on a machine that has only Python >= 3.11: make demo, make test. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
SCALE := .venv-scale
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-scale lab lint format figures bench clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.demo  ## the main job: a table, and a figure to open offline
	$(PY) -m igrpo_kit compare --preset demo

test: $(VENV)/.all lint  ## everything the project promises
	$(PY) -m pytest
	@echo "Left out: FSDP2, ZeRO-3 and LoRA on two CPU processes; make test-scale runs them."

test-scale: $(SCALE)/.all  ## the trainer on TRL under FSDP2, ZeRO-3 and LoRA (needs g++), two CPU processes
	OMP_NUM_THREADS=1 $(SCALE)/bin/python -m pytest -m scale -v

lab: $(VENV)/.all  ## open the lessons in JupyterLab
	$(PY) -m jupyterlab notebooks

lint: $(VENV)/.all  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.all  ## put style and notebooks in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m nbstripout --keep-id notebooks/*.ipynb

figures: $(VENV)/.all  ## draw figures/ anew from data/
	$(PY) -m igrpo_kit figures

bench: $(VENV)/.all  ## measure, on a quiet machine: data/benchmarks/*.json
	@for name in grading sampler shared_prefix step step_over_trl growth; do $(PY) -m benchmarks.$$name || exit 1; done

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

# DeepSpeed pins nothing of ours but changes what transformers does when it is there: an environment apart.
$(SCALE)/.all: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[train,test]' deepspeed==0.19.8 peft==0.21.2
	@touch $@

clean:  ## remove the environments and caches
	rm -rf $(VENV) $(SCALE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
