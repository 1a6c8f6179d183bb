# Everything runs in this clone's own .venv, with the versions that constraints.txt pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: help same-python install serve demo test test-faults test-hindered test-clients test-llamacpp test-vllm lint types imports wheel bench bench-quick bench-scale bench-throughput bench-swap bench-learning bench-real-model clean

help:  ## Say what each target does.
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  make %-17s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) .ci/check_python.py
	$(PYTHON) -m venv $(VENV)

# Where a Python is named, .venv has to be of that one.
ifneq ($(origin PYTHON),file)
$(BIN)/python: | same-python
endif

same-python:
	@test ! -e $(BIN)/python || $(PYTHON) .ci/check_python.py $(BIN)/python

$(VENV)/.installed: $(BIN)/python $(INPUTS)
	@$(BIN)/python .ci/check_python.py
	@echo "Installing strop and the embedded engine into $(VENV) (about 400 MB, once) ..."
	$(PIP) --editable '.[mlx]'
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.installed
	$(PIP) --editable '.[mlx,demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need into $(VENV) (1.5 GB, once; 5 GB where pip takes the CUDA build of torch) ..."
	$(PIP) --editable '.[mlx,torch,gguf,demo,dev]'
	@touch $@

install: $(VENV)/.installed  ## Install strop with the embedded engine into .venv.

serve: install  ## Start the proxy on http://127.0.0.1:8484 (ARGS='--port 9000 ...').
	$(BIN)/strop serve $(ARGS)

demo: $(VENV)/.installed-demo  ## Show the whole loop on this machine, with the small model that strop ships.
	$(BIN)/strop demo $(ARGS)

test: $(VENV)/.installed-dev  ## Run the tests, but for the lanes below (ARGS='-k relay -x'; ARGS='-n 0 --pdb').
	$(BIN)/python -m pytest -m 'not faults' -n 3 --dist loadfile $(ARGS)

test-faults: $(VENV)/.installed-dev  ## Break things under load, at four times the scale of CI (FAULTS_SCALE=1).
	FAULTS_SCALE=$${FAULTS_SCALE:-4} $(BIN)/python -m pytest -m faults --timeout 600 $(ARGS)

test-hindered: $(VENV)/.installed-dev  ## Run the tests on a machine that takes its time, at random (half an hour; Linux).
	$(BIN)/python -m pytest -p hindered -m 'not faults' -n 3 --dist loadfile $(ARGS)

test-clients: $(VENV)/.installed-dev  ## Try stock clients, each in an environment of its own (needs node).
	$(BIN)/python -m pytest -m clients --clients $(ARGS)

test-llamacpp: $(VENV)/.installed-dev  ## Try llama.cpp's llama-server, built into .cache (half an hour on two cores, once).
	$(BIN)/python tests/support/llamacpp_build.py $$(getconf _NPROCESSORS_ONLN)
	$(BIN)/python -m pytest -m llamacpp --llamacpp $(ARGS)

test-vllm: $(VENV)/.installed-dev  ## Try a real vLLM, its CPU build, in .venv-vllm (2.5 GB, once).
	$(BIN)/python -m pytest -m vllm --vllm $(ARGS)

lint: $(VENV)/.installed-dev  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## Check types.
	$(BIN)/mypy

imports: $(VENV)/.installed-dev  ## Check which package may import which.
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## Measure speed beside nginx and LiteLLM (ARGS=--docs writes docs/performance.md).
	-$(BIN)/python -m bench.setup
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.installed-dev  ## The same in under two minutes, without LiteLLM.
	$(BIN)/python -m bench --quick $(ARGS)

bench-scale: $(VENV)/.installed-dev  ## A store of 1,000,000 completions beside one of 1,000 (4 GB, ten minutes).
	$(BIN)/python -m bench.scale $(ARGS)

bench-throughput: $(VENV)/.installed-dev  ## What answers cost on strop's own engine, beside a stock mlx_lm.server.
	$(BIN)/python -m bench.throughput $(ARGS)

bench-swap: $(VENV)/.installed-dev  ## What a switch costs, beside a stock mlx_lm.server.
	$(BIN)/python -m bench.swap $(ARGS)

bench-learning: $(VENV)/.installed-dev  ## What ratings teach, beside TRL and others (hours; goes on where it was).
	-$(BIN)/python -m bench.learning.setup
	$(BIN)/python -m bench.learning $(ARGS)

bench-real-model: $(VENV)/.installed-dev  ## What a real model of 135M learns from ratings (hours without a GPU).
	$(BIN)/python -m bench.real_model $(ARGS)

wheel: $(VENV)/.installed-dev  ## Build the wheel into dist/.
	rm -rf build
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## Remove what was built and installed here; ~/.strop stays.
	rm -rf $(VENV) .venv-vllm build dist .cache *.egg-info
