# Every command of the README. `make help` lists them.
#   make sft RECIPE=smollm2-135m ACCELERATE=single_gpu ARGS="--learning_rate 1e-4"

RECIPE     ?= sandbox
ACCELERATE ?= cpu
ARGS       ?=
PROMPT     ?=
HUB_ID     ?=
PYTHON     ?= $(shell command -v python3.11 || command -v python3)

override export PROMPT := $(value PROMPT)  # as it was given: make expands no $ in it

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

VENV      := .venv
INSTALLED := $(VENV)/.installed
TESTED    := $(VENV)/.installed-dev
RUN       := runs/$(RECIPE)

# Without a GPU the processes of a launch share the cores, and the launcher has to be told: it warns otherwise, and of
# several processes it forgets that they are to be on the CPU.
PROCESSES_cpu       := 1
PROCESSES_multi_cpu := 2
PROCESSES            = $(PROCESSES_$(ACCELERATE))
CORES               := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
THREADS              = $(if $(PROCESSES),$(or $(OMP_NUM_THREADS),$(shell \
	echo $$((($(CORES) + $(PROCESSES) - 1) / $(PROCESSES))))))
ifneq ($(PROCESSES),)
export ACCELERATE_USE_CPU := true
endif

# launch.py is `accelerate launch`, without Accelerate's other commands, which take two seconds to load, and with Ctrl-C.
# --quiet: a failing stage has said what is wrong; the launcher's own traceback would hide it.
LAUNCH = $(VENV)/bin/python accelerate_configs/launch.py --quiet --config_file accelerate_configs/$(ACCELERATE).yaml \
	$(if $(THREADS),--num_cpu_threads_per_process $(THREADS))
STAGE  = $(LAUNCH) recipes/$(1).py --config recipes/$(RECIPE)/$(2).yaml $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-all lint format data pretrain sft reward choose ppo evaluate benchmark label compare inspect notebook push

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo 'Variables: RECIPE=$(RECIPE) ACCELERATE=$(ACCELERATE) ARGS="--any_option value" PYTHON=$(notdir $(PYTHON))'

install: $(INSTALLED) ## create .venv with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo 'error: no python3.11 on the path; give one with PYTHON=...' >&2; exit 2; fi
	@echo 'Installing into $(VENV), once; it takes a few minutes.'
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet -e '.[data,label]' -c constraints.txt
	@touch $@

# What tests and ruff need besides.
$(TESTED): $(INSTALLED)
	@$(VENV)/bin/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

# On a model this small two processes of one thread are quicker than one of two.
demo: override ACCELERATE := multi_cpu
demo: export ACCELERATE_USE_CPU := true
demo: $(INSTALLED) ## the whole recipe on the sandbox, base to report, in about ten minutes
	@$(LAUNCH) recipes/demo.py
	@echo "The report is $(CURDIR)/runs/sandbox/report.html"

check: $(INSTALLED) ## run all stages of RECIPE on a short model first, in seconds
	@$(VENV)/bin/python recipes/check.py --recipe recipes/$(RECIPE) $(ARGS) --processes \
		$$(sed -n 's/^num_processes: *//p' accelerate_configs/$(ACCELERATE).yaml)

test: $(TESTED) ## all tests but those of 43 more architectures and browsers, without network or GPU
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 \
		-m "not architectures and not browser" $(ARGS)

test-all: $(TESTED) ## all tests
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 $(ARGS)

lint: $(TESTED) ## ruff: rules and format; pyright: types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright

format: $(TESTED) ## let ruff put the code in order
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

data: $(INSTALLED) ## raw prompts -> train, validation and test without duplicates and personal data, and a card
	@$(VENV)/bin/python recipes/data.py --config recipes/$(RECIPE)/data.yaml $(ARGS)

pretrain: $(INSTALLED) ## train the sandbox's base model on the sandbox's documents
	$(call STAGE,pretrain,pretrain)
	$(call STAGE,pretrain,pretrain_stage2)

sft: $(INSTALLED) ## supervised fine-tuning on demonstrations
	$(call STAGE,sft,sft)

reward: $(INSTALLED) ## reward model from rankings, and its calibration
	$(call STAGE,reward,reward)

choose: $(INSTALLED) ## choose the SFT checkpoint by reward-model score on validation
	$(call STAGE,choose,choose)

ppo: $(INSTALLED) ## PPO from the SFT model against the reward model
	$(call STAGE,ppo,ppo)

evaluate: $(INSTALLED) ## answers of any systems, verdicts of any judges, numbers with intervals, report
	$(call STAGE,evaluate,evaluate)

benchmark: $(INSTALLED) ## truth, bias and regressions of each stage: make benchmark ARGS="--tasks truthfulqa crows_pairs"
	$(LAUNCH) recipes/benchmark.py --run $(RUN) $(ARGS)

label: $(INSTALLED) ## people rank completions in a browser: make label ARGS="--systems sft ppo --prompts FILE --k 4"
	@$(VENV)/bin/python recipes/label.py --run $(RUN) --recipe recipes/$(RECIPE) $(ARGS)

compare: $(INSTALLED) ## what base, SFT and RLHF answer: make compare PROMPT="..."
	@$(VENV)/bin/python recipes/compare.py --run $(RUN) --prompt="$$PROMPT" $(ARGS)

inspect: $(INSTALLED) ## what the stages were trained with, and what differs from another run (ARGS=runs/other)
	@$(VENV)/bin/python recipes/inspect.py $(RUN) $(ARGS)

notebook: $(TESTED) ## execute examples/instructgpt.ipynb, in place, and make docs/instructgpt.md of it
	$(VENV)/bin/python examples/execute.py

push: $(INSTALLED) ## upload the stages' adapters: make push HUB_ID=me/name [ARGS=--dry_run]
	@$(VENV)/bin/python recipes/push.py --run_folder $(RUN) --hub_id "$(HUB_ID)" $(ARGS)
