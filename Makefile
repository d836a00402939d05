# Every command of the README. `make help` lists them.
#   make sft RECIPE=smollm2-135m ACCELERATE=single_gpu ARGS="--learning_rate 1e-4"

RECIPE     ?= sandbox
ACCELERATE ?=
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

# The same command as in an installed package, of this checkout: rlhf/command.py.
RLHF  = $(VENV)/bin/python -m rlhf.command
STAGE = @$(RLHF) $(1) $(RECIPE) $(if $(ACCELERATE),--accelerate $(ACCELERATE)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help install demo new doctor check plan test test-all lint format data pretrain sft reward choose ppo evaluate benchmark label chat compare inspect notebook push

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo 'Variables: RECIPE=$(RECIPE) ACCELERATE=$(or $(ACCELERATE),<by the number of GPUs>) ARGS="--any_option value" PYTHON=$(notdir $(PYTHON))'

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

demo: $(INSTALLED) ## the whole recipe on the sandbox, base to report, in about ten minutes
	@$(RLHF) demo

new: $(INSTALLED) ## write a recipe: make new ARGS="mine --model <folder or Hub id> --data <file>"
	@$(RLHF) new $(ARGS)

doctor: $(INSTALLED) ## what this machine can do, and what is missing
	@$(RLHF) doctor

check: $(INSTALLED) ## run all stages of RECIPE on a short model first, in seconds
	$(call STAGE,check)

plan: $(INSTALLED) ## memory per device and hours of each stage of RECIPE, before anything is loaded
	$(call STAGE,plan)

test: $(TESTED) ## all tests but those of 43 more architectures and browsers, without network or GPU
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 \
		-m "not architectures and not browser" $(ARGS)

test-all: $(TESTED) ## all tests
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 $(ARGS)

lint: $(TESTED) ## ruff: rules and format; pyright: types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright

format: $(TESTED) ## let ruff put the code in order, and write the help of the commands to rlhf/help/
	$(VENV)/bin/python tests/help_pages.py
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

data: $(INSTALLED) ## raw prompts -> train, validation and test without duplicates and personal data, and a card
	@$(RLHF) data $(RECIPE) $(ARGS)

pretrain: $(INSTALLED) ## train the sandbox's base model on the sandbox's documents
	$(call STAGE,pretrain)
	@$(RLHF) pretrain recipes/$(RECIPE)/pretrain_stage2.yaml $(if $(ACCELERATE),--accelerate $(ACCELERATE)) $(ARGS)

sft: $(INSTALLED) ## supervised fine-tuning on demonstrations
	$(call STAGE,sft)

reward: $(INSTALLED) ## reward model from rankings, and its calibration
	$(call STAGE,reward)

choose: $(INSTALLED) ## choose the SFT checkpoint by reward-model score on validation
	$(call STAGE,choose)

ppo: $(INSTALLED) ## PPO from the SFT model against the reward model
	$(call STAGE,ppo)

evaluate: $(INSTALLED) ## answers of any systems, verdicts of any judges, numbers with intervals, report
	$(call STAGE,evaluate)

benchmark: $(INSTALLED) ## truth, bias and regressions of each stage: make benchmark ARGS="--tasks truthfulqa crows_pairs"
	@$(RLHF) benchmark $(RUN) $(if $(ACCELERATE),--accelerate $(ACCELERATE)) $(ARGS)

label: $(INSTALLED) ## people rank completions in a browser: make label ARGS="--systems sft ppo --prompts FILE --k 4"
	@$(RLHF) label --run $(RUN) --recipe recipes/$(RECIPE) $(ARGS)

compare: $(INSTALLED) ## what base, SFT and RLHF answer: make compare PROMPT="..."
	@$(RLHF) compare $(RUN) --prompt="$$PROMPT" $(ARGS)

chat: $(INSTALLED) ## talk with base, SFT and RLHF in the terminal
	@$(RLHF) chat $(RUN) $(ARGS)

inspect: $(INSTALLED) ## what the stages were trained with, and what differs from another run (ARGS=runs/other)
	@$(RLHF) inspect $(RUN) $(ARGS)

notebook: $(TESTED) ## execute examples/instructgpt.ipynb, in place, and make docs/instructgpt.md of it
	$(VENV)/bin/python examples/execute.py

push: $(INSTALLED) ## upload the stages' adapters: make push HUB_ID=me/name [ARGS=--dry_run]
	@$(RLHF) push $(RUN) --hub_id "$(HUB_ID)" $(ARGS)
