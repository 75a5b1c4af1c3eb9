# One command per job; each calls `python -m experiments …`. `make help` lists them.
# Needs Python >= 3.10 with venv, and nothing else. Another interpreter: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CLI := $(PY) -m experiments

# Only words given on the command line or in the environment become arguments.
option = $(if $(2),$(1) '$(2)')
chosen = $(call option,--exp,$(EXP)) $(call option,--data,$(DATA)) $(call option,--scale,$(SCALE)) $(call option,--seed,$(SEED))
table_choice = $(call option,--data,$(DATA)) $(call option,--scale,$(SCALE)) $(call option,--seeds,$(SEEDS)) $(call option,--rows,$(ROWS))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all data train regions eval ablation table results report sync bench doctor lint

help: ## this list
	@awk '/^[a-z-]+:.*## / {name = $$1; sub(":.*", "", name); sub(".*## ", ""); printf "  make %-9s %s\n", name, $$0}' Makefile

setup: $(STAMP) ## build .venv from requirements.lock (uv if present, else brought into .venv)
	@:

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "make setup needs Python 3.10 or newer: PYTHON=/path/to/python3.x make setup" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv --without-pip $(VENV)
	@if command -v uv >/dev/null 2>&1; then uv=uv; else \
	  uv=$(VENV)/tools/bin/uv; \
	  test -x $$uv || { echo "bringing uv into $(VENV)/tools"; \
	    $(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/python -m pip install --quiet uv; }; fi; \
	$$uv pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements.lock
	@touch $@

demo: setup ## the whole path on the embedded catalogue: shards, training, evaluation, table, report
	@$(CLI) demo $(call option,--seed,$(SEED)) $(ARGS)

test: setup ## the test suite, on CPU and offline
	@$(PY) -m pytest -m "not slow"

test-all: setup ## the test suite with the long ones
	@$(PY) -m pytest

data: setup ## raw source, or the address of finished shards, to shard folder: DATA=<name> [URL=…] [SOURCE=synthetic|grocery|photos|product1m] [RAW=…] [OUT=…] [REGIONS=…]
	@$(if $(DATA),,echo "make data wants DATA=<name>, for example make data DATA=synthetic" >&2; exit 2;) \
	$(if $(URL),$(CLI) data link '$(URL)' --out '$(or $(OUT),data/$(DATA))' $(ARGS); exit;) \
	$(CLI) data build '$(or $(SOURCE),$(DATA))' $(call option,--raw,$(RAW)) $(call option,--regions,$(REGIONS)) --out '$(or $(OUT),data/$(DATA))' $(ARGS)

train: setup ## train and test: EXP=capture [DATA=<name|folder>] [SCALE=paper|small|tiny] [SEED=0] [ARGS="--model.lr=5e-5"]
	@$(CLI) fit $(chosen) $(ARGS)

regions: setup ## a detector's boxes and features beside the shards: EXP=detector DATA=… SCALE=… [NAME=detected]
	@$(CLI) predict --exp '$(or $(EXP),detector)' $(call option,--data,$(DATA)) $(call option,--scale,$(SCALE)) $(call option,--seed,$(SEED)) $(call option,--name,$(NAME)) $(ARGS)

eval: setup ## evaluate again: RUN=runs/<run_id> [DATA=…], or as built, nothing trained: EXP=clip DATA=… [SCALE=…]
	@$(CLI) eval $(call option,--run,$(RUN)) $(chosen) $(ARGS)

ablation: setup ## run what is missing of a table: TABLE=<name> [DATA=…] [SCALE=…] [SEEDS=0,1,2] [ROWS=a,b] [JOBS=n] [DRY=1] [LAUNCH=slurm CLUSTER=<file>]
	@$(CLI) ablate $(if $(TABLE),'$(TABLE)') $(table_choice) $(call option,--jobs,$(JOBS)) $(call option,--launch,$(LAUNCH)) $(call option,--cluster,$(CLUSTER)) $(if $(filter-out 0,$(DRY)),--dry) $(ARGS)

table: setup ## table of runs: TABLE=<name> [DATA=…] [SCALE=…] [SEEDS=…] [ROWS=a,b], or RUNS="runs/a runs/b" [OUT=file.md|.tex|.csv] [PLOT=file.png|.svg] [WANDB=1]
	@$(CLI) table $(call option,--table,$(TABLE)) $(table_choice) $(call option,--out,$(OUT)) $(call option,--plot,$(PLOT)) $(if $(filter-out 0,$(WANDB)),--wandb) $(RUNS) $(ARGS)

results: setup ## keep a table's finished runs in the repository, and write the README's results: [TABLE=<name>] [DATA=…] [SCALE=…] [SEEDS=…]
	@$(CLI) results $(call option,--table,$(TABLE)) $(table_choice) $(ARGS)

report: setup ## one static HTML page: RUN=runs/<run_id>, or TABLE=<name> [DATA=…] [SCALE=…] [SEEDS=…] [OUT=file.html]
	@$(CLI) report $(call option,--run,$(RUN)) $(if $(TABLE),$(call option,--table,$(TABLE)) $(table_choice)) $(call option,--out,$(OUT)) $(ARGS)

sync: setup ## upload to W&B what was logged offline: RUN=runs/<run_id> or TABLE=<name> [DATA=…] [SCALE=…] [SEEDS=…] [DRY=1]
	@$(CLI) sync $(RUN) $(call option,--table,$(TABLE)) $(table_choice) $(if $(filter-out 0,$(DRY)),--dry) $(ARGS)

bench: setup ## throughput and memory of loader, training step and search; ARGS=graph: of the entity graph; ARGS=scale: what a million pairs take
	@$(CLI) bench $(ARGS)

doctor: ## versions, devices, vendor imports, and the remedy for what is broken; works without set-up
	@$(PYTHON) -m experiments doctor

lint: setup ## ruff check, ruff format --check, mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
