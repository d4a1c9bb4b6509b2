# Two commands do everything on a fresh Debian 12 or Ubuntu 24.04 machine:
#   make run    a story streamed from the three processes and the bundled demo model
#   make test   every test
# `make help` lists the rest.

PROMPT ?= Once upon a time
BUILD ?= build/release
# Compiler jobs: one a core, but no more than one for each 2 GiB of memory.
JOBS ?= $(shell m=$$(awk '/MemAvailable/ {print int($$2 / 2097152) + 1}' /proc/meminfo); n=$$(nproc); echo $$((m < n ? m : n)))
PRESET = $(notdir $(BUILD))

.DEFAULT_GOAL := help
# Containers: docker or podman, and the tool that reads Compose files. Whatever either needs here goes into the variables.
ENGINE ?= $(shell command -v docker >/dev/null && echo docker || echo podman)
COMPOSE ?= $(if $(filter podman,$(notdir $(firstword $(ENGINE)))),podman-compose,$(ENGINE) compose)
BUILD_FLAGS ?=
IMAGES ?= localhost/isotherm
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PYTHON ?= python3
# cpu: device host; gpu: device cuda.
PROFILE ?= cpu
export ISOTHERM_IMAGES ?= $(IMAGES)
COMPOSE_UP = $(COMPOSE) -f deploy/compose.yaml --profile $(PROFILE)

.PHONY: images install-tree secrets up down logs manifests deploy-test
.PHONY: help setup venv build run test test-asan test-tsan test-slow test-clang bench fuzz format clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make run PROMPT=\"The king said to his daughter,\"   a story of your own beginning"

setup: ## Install missing packages (apt)
	@tools/setup/install-dependencies.sh

venv: setup ## Install the Python tools into .venv (pip); their tests then run too
	@test -x .venv/bin/isotherm-synthesize || { python3 -m venv .venv && .venv/bin/pip install --quiet './tools/python[test]'; }

build: setup ## Build everything into build/release
	@test -f $(BUILD)/build.ninja || cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) --parallel $(JOBS)

run: setup ## Stream a story from the demo model (PROMPT="...")
	@test -f $(BUILD)/build.ninja || cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) --parallel $(JOBS) --target gateway gpu_worker cpu_worker isotherm
	@ISOTHERM_BIN=$(BUILD)/bin tools/run/demo.sh "$(PROMPT)"

test: build ## Run every test
	@ctest --test-dir $(BUILD) --output-on-failure --label-exclude 'bench|slow' --parallel 1

test-slow: build ## Run the long tests too
	@ctest --test-dir $(BUILD) --output-on-failure --label-exclude bench

test-asan: ## Every test under the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory test BUILD=build/asan-ubsan

test-tsan: ## Every test under the thread sanitizer
	@$(MAKE) --no-print-directory test BUILD=build/tsan

test-clang: ## Build with clang, thread-safety warnings as errors
	@$(MAKE) --no-print-directory build BUILD=build/clang-strict

bench: venv ## Benchmarks of kernels, exchange and decoding on this machine (MODEL=FILE: decode with that)
	@test -f $(BUILD)/build.ninja || cmake --preset $(PRESET) --log-level=WARNING
	@cmake --build $(BUILD) --parallel $(JOBS) --target gateway gpu_worker cpu_worker isotherm kernel_bench ffn_bench exchange_bench
	@tests/bench/cpu.sh $(BUILD)

fuzz: setup ## Fuzz the file and text parsers for ten minutes each (clang)
	@tests/fuzz/run.sh

format: ## Format the sources
	@git ls-files '*.cc' '*.h' | xargs clang-format -i

images: ## Build the container images (ENGINE=docker or podman, BUILD_FLAGS="--build-arg BASE=...")
	@ENGINE="$(ENGINE)" IMAGES="$(IMAGES)" VERSION="$(VERSION)" deploy/image/build-all.sh $(BUILD_FLAGS)

install-tree: build ## Install into build/install, from where images can take the programs (BUILD_FLAGS="--build-arg INSTALL=build/install")
	@cmake --install $(BUILD) --prefix build/install --strip >/dev/null
	@deploy/image/runtime-packages.sh build/install/bin/* >build/install/runtime-packages

secrets:
	@ENGINE="$(ENGINE)" IMAGES="$(IMAGES)" deploy/make-secrets.sh deploy/secrets

up: secrets ## Start the containers of deploy/compose.yaml (PROFILE=cpu or gpu)
	@$(COMPOSE_UP) up -d

down: ## Stop them
	@$(COMPOSE_UP) down

logs: ## Follow their logs
	@$(COMPOSE_UP) logs -f

manifests: ## Render the Helm chart into deploy/kubernetes (helm, or Go with its sprig package)
	@deploy/helm/render.sh

deploy-test: ## Images, Compose stack, dashboards, alerts and manifests, in real containers (docs/deploy.md)
	@ENGINE="$(ENGINE)" COMPOSE="$(COMPOSE)" BUILD_FLAGS="$(BUILD_FLAGS)" $(PYTHON) -B tests/deploy/deploy_test.py
	@$(PYTHON) -B tests/deploy/manifests_test.py || test $$? = 77

clean: ## Remove build output
	@rm -rf build
