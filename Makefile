# `make` lists the targets. Every target sets up .venv on first use.
PYTHON ?= python3
PROFILE ?= quick
SEEDS ?= 0
MODEL ?= resnet110
DATASET ?= cifar10
BASELINE ?=
ARGS ?=
DISTILLATION_ARGS ?=

BIN := .venv/bin
READY := .venv/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Large pages of memory, where Linux has them, make training faster.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help setup test test-all lint reproduce-lenet reproduce-resnet110 reproduce-mobilenet reproduce-vgg16 reproduce-survey reproduce-recipes tables plots bench clean

help:  ## list the targets
	@echo "Targets (variables: PROFILE=smoke|quick|full SEEDS=\"0 1 2\" MODEL=resnet20 ARGS=... PYTHON=python3):"
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-18s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with the tested versions

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

test: $(READY)  ## run the tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile $(ARGS)

test-all: $(READY)  ## run the slow tests too (hours; results/slow-tests.csv)
	$(BIN)/python -m pytest --slow-results=results/slow-tests.csv $(ARGS)

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

reproduce-lenet: $(READY)  ## LeNet-5 on MNIST: prune, quantize, export, compare (PROFILE=full SEEDS="0 1 2" for the table)
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.lenet --profile=$(PROFILE) --seed=$$seed $(ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

reproduce-resnet110: $(READY)  ## filter pruning by distribution fitting on CIFAR-10 (MODEL=resnet20 or resnet56 too; hours)
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.resnet --model=$(MODEL) --profile=$(PROFILE) --seed=$$seed $(ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

reproduce-vgg16: MODEL = vgg16
reproduce-vgg16: $(READY)  ## the diversifying algorithm (DATASET=cifar100 too; MODEL=resnet20, densenet40, ...; BASELINE=file; days)
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.diversify --model=$(MODEL) --dataset=$(DATASET) --profile=$(PROFILE) \
			--seed=$$seed $(if $(BASELINE),--baseline=$(BASELINE)) $(ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

reproduce-mobilenet: $(READY)  ## MobileNet with 224x224 pixels, then on CIFAR-10 (IMAGENET_WEIGHTS=file IMAGENET_DIR=folder; hours)
	@$(BIN)/python -m experiments.mobilenet --profile=$(PROFILE) --setting=imagenet \
		$(if $(IMAGENET_WEIGHTS),--imagenet_weights="$(IMAGENET_WEIGHTS)") \
		$(if $(IMAGENET_DIR),--imagenet_dir="$(IMAGENET_DIR)")
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.mobilenet --profile=$(PROFILE) --seed=$$seed $(ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

reproduce-survey: $(READY)  ## LeNet-5 by six families of compression, and distillation (DISTILLATION_ARGS; PROFILE=full: 40 minutes a seed)
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.survey --profile=$(PROFILE) --seed=$$seed $(ARGS) || exit $$?; \
		$(BIN)/python -m experiments.distillation --profile=$(PROFILE) --seed=$$seed $(DISTILLATION_ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

reproduce-recipes: MODEL = mnist_convnet
reproduce-recipes: $(READY)  ## what `tfcompress compress` makes of a model (MODEL=mobilenet_v2, ..., with PROFILE=full resnet20; an hour or more)
	@for seed in $(SEEDS); do \
		$(BIN)/python -m experiments.recipes --model=$(MODEL) --profile=$(PROFILE) --seed=$$seed $(ARGS) || exit $$?; \
	done
	@$(MAKE) --no-print-directory plots tables

tables: $(READY)  ## write results/README.md and the CSV tables from the records
	$(BIN)/python -m tfcompress.reporting tables --results=results --readme=README.md

plots: $(READY)  ## draw the plots from the records
	$(BIN)/python -m tfcompress.reporting plots --results=results

bench: $(READY)  ## time training, the command, surgery and pruned int8 files (results/bench)
	$(BIN)/python -m experiments.bench_training
	$(BIN)/python -m experiments.bench_command
	$(BIN)/python -m experiments.bench_surgery
	$(BIN)/python -m experiments.bench_latency

clean:  ## remove .venv, caches and all of runs/, unfinished trainings too (asks nothing; results/ stays)
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
