#!/usr/bin/env bash
# Benchmarks of this machine: kernels, the sparse FFN, the exchange, then decoding with the model MODEL names (a synthetic one of
# 1.9 GB is made in build/bench if isotherm-synthesize is installed). Usage: cpu.sh [BUILD_DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
model=${MODEL:-build/bench/synthetic-f16.gguf}
threads=$(nproc)

"$build/tests/kernel_bench" --benchmark_min_time=0.2
"$build/tests/ffn_bench"
"$build/tests/exchange_bench"

if [[ ! -f $model ]]; then
  command -v isotherm-synthesize >/dev/null || {
    echo "cpu.sh: no model for the decode benchmark. Install tools/python (pip install ./tools/python) or set MODEL=FILE" >&2
    exit 1
  }
  mkdir -p "$(dirname "$model")"
  isotherm-synthesize --layers 16 --hidden 2048 --ffn 5632 --heads 16 --kv-heads 16 --vocab 32000 --context 1024 \
    --type f16 --active 0.10 --out "$model"
fi
tests/bench/decode_bench.py --bin "$build/bin" --model "$model" --threads "$threads"
