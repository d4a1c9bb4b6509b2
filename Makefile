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
.PHONY: help setup venv build run test test-asan test-tsan test-slow test-clang bench fuzz format clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
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

bench: build ## Benchmarks of kernels, exchange and decoding on this machine
	@tests/bench/cpu.sh $(BUILD)

fuzz: setup ## Fuzz the file and text parsers for ten minutes each (clang)
	@tests/fuzz/run.sh

format: ## Format the sources
	@git ls-files '*.cc' '*.h' | xargs clang-format -i

clean: ## Remove build output
	@rm -rf build
