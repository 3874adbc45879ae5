# `make demo` and `make test` set up their own .venv on a fresh clone; a second call does not reinstall.
PYTHON ?= python3
BIN := .venv/bin
MADE := .venv/.made

.PHONY: demo test test-slow test-matrix test-all systems leaderboard retrieval prompts models peers pins mutants benchmark kvpress byte-peer lmms vllm vllm-all docs release clean

$(MADE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokensieve needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(MADE)
	$(BIN)/tokensieve demo --out out/demo

test: $(MADE)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

# A browser and its driver are of one version; the package's is the browser's. Without a driver the tests of pages are skipped.
test-slow: $(MADE)
	@if command -v chromium >/dev/null && ! command -v chromedriver >/dev/null && ! $(BIN)/python -c 'import chromedriver_py' \
	2>/dev/null; then $(BIN)/pip install --quiet --disable-pip-version-check \
	"chromedriver-py==$$(chromium --version | sed 's/[^0-9]*\([0-9]*\).*/\1/').*" || true; fi
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

# Other releases of transformers and of diffusers go to out/matrix.
test-matrix: $(MADE) lmms
	$(BIN)/python -m tests.matrix

test-all: test-slow test

systems: $(MADE)
	$(BIN)/python -m benchmarks.systems

leaderboard: $(MADE)
	$(BIN)/python -m benchmarks.leaderboard
	$(BIN)/python -m benchmarks.several
	$(BIN)/python -m benchmarks.cache
	$(BIN)/python -m benchmarks.real_cache
	$(BIN)/python -m benchmarks.real_page

retrieval: $(MADE)
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.inside

prompts: $(MADE)
	$(BIN)/python -m benchmarks.prompt_questions out/prompts/qa.jsonl
	$(BIN)/tokensieve bench-prompts --data out/prompts/qa.jsonl --model smollm2 --keep 0.25 --methods question,surprisal \
		--new-tokens 20 --batch 8 --dtype bfloat16 --out out/prompts/help
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.prompts
	$(BIN)/python -m benchmarks.prompts_peer

peers: $(MADE)
	$(BIN)/python -m benchmarks.peers

models: $(MADE)
	$(BIN)/python -m benchmarks.models

pins: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pins

mutants: $(MADE)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants

benchmark: $(MADE)
	$(BIN)/python -m benchmarks.all

# kvpress needs an older transformers than we do.
out/kvpress/.venv/.made:
	mkdir -p out/kvpress
	$(PYTHON) -m venv out/kvpress/.venv
	out/kvpress/.venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	out/kvpress/.venv/bin/pip install --quiet --disable-pip-version-check kvpress==0.5.5 transformers==5.2.0
	touch $@

kvpress: $(MADE) out/kvpress/.venv/.made
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.kvpress

# What genlm-bytes imports beside torch and transformers, in a folder that nothing else sees.
out/byte-peer/.made:
	mkdir -p out/byte-peer
	$(BIN)/pip install --quiet --disable-pip-version-check --target out/byte-peer numba==0.68.1 ipython==9.18.1
	$(BIN)/pip install --quiet --disable-pip-version-check --target out/byte-peer --no-deps genlm-bytes==0.2.0 \
		genlm-backend==0.3.1 arsenal==3.1.3
	touch $@

byte-peer: $(MADE) out/byte-peer/.made
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.byte_peer

# vLLM has an environment of its own, with the transformers that it pins; of other releases (make vllm VLLM=0.31.0, VLLM=newest)
# the packaged LLaVA is asked.
VLLM ?= 0.32.0
VLLM_ENV := out/vllm/$(if $(filter 0.32.0,$(VLLM)),.venv,$(VLLM))

# The first is what CI runs: LLaVA, Qwen2.5-VL, HTTP. Where the registry is out of reach, a sentence says so, and nothing fails.
vllm vllm-all:
	$(PYTHON) -m tools.vllm_env $(VLLM_ENV) $(VLLM) && \
	  $(VLLM_ENV)/bin/python -m pytest -s $(if $(filter vllm,$@),-m "not slow") tests/vllm/$(if $(filter 0.32.0,$(VLLM)),,test_llava.py) || test $$? = 77

# lmms-eval asks for much that nothing else needs.
out/lmms/.venv/.made: pyproject.toml
	mkdir -p out/lmms
	$(PYTHON) -m venv out/lmms/.venv
	out/lmms/.venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	out/lmms/.venv/bin/pip install --quiet --disable-pip-version-check lmms-eval==0.7 decord==0.6.0 pytest \
		torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 --editable .
	touch $@

lmms: out/lmms/.venv/.made
	OMP_NUM_THREADS=1 out/lmms/.venv/bin/python -m pytest tests/test_lmms_eval.py

docs: $(MADE)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# What builds and judges a release has an environment of its own; nothing is uploaded.
out/release/.venv/.made:
	mkdir -p out/release
	$(PYTHON) -m venv out/release/.venv
	out/release/.venv/bin/pip install --quiet --disable-pip-version-check build 'setuptools>=77' twine trove-classifiers
	touch $@

release: $(MADE) out/release/.venv/.made
	$(BIN)/python -m tools.release out/release/.venv/bin/python

clean:
	rm -rf .venv out site dist
