#!/usr/bin/env bash
# Benchmarks of this machine: kernels, the sparse FFN, the exchange, then decoding with the model MODEL names. Without MODEL a synthetic
# one of 1.9 GB is made in build/bench, once. Under ten minutes on two cores. Usage: cpu.sh [BUILD_DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
model=${MODEL:-build/bench/synthetic-f16.gguf}
threads=$(nproc)
export PATH="$PWD/.venv/bin:$PATH"

if [[ -n ${MODEL:-} && ! -f $model ]]; then
  echo "cpu.sh: MODEL=$model is no file" >&2
  exit 2
fi
if [[ ! -f $model ]] && ! command -v isotherm-synthesize >/dev/null; then
  echo "cpu.sh: no model to decode with. 'make venv' installs isotherm-synthesize, which makes one; or set MODEL=FILE" >&2
  exit 2
fi

step() { printf '\n== %s ==\n' "$*"; }

step "kernels, one by one (1/4)"
"$build/tests/kernel_bench" --benchmark_min_time=0.2
step "the sparse FFN (2/4)"
"$build/tests/ffn_bench"
step "exchanges between two processes (3/4)"
"$build/tests/exchange_bench"
if [[ ! -f $model ]]; then
  step "a synthetic model of 1.9 GB for what follows: $model"
  mkdir -p "$(dirname "$model")"
  # A run that was broken off leaves no half a model under its name.
  isotherm-synthesize --layers 16 --hidden 2048 --ffn 5632 --heads 16 --kv-heads 16 --vocab 32000 --context 1024 \
    --type f16 --active 0.10 --out "$model.part"
  mv "$model.part" "$model"
fi
step "decoding: $model (4/4)"
tests/bench/decode_bench.py --bin "$build/bin" --model "$model" --threads "$threads"
