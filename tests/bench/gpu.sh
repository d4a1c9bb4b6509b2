#!/usr/bin/env bash
# Device cuda on a machine that has a GPU but not this one's packages.
#   gpu.sh bundle ARCHIVE [BUILD]     here: binaries, tests and the shared libraries they need, as a .tar.xz
#   gpu.sh test FOLDER OUT            there, in a checkout: the device tests, compute-sanitizer over the operators
#   gpu.sh bench FOLDER OUT MODEL... [-- FLAG...]  there: the demo model's text on both devices, then each
#                                     MODEL=GiB[:PREDICTOR], with further flags of gpu_bench.py
#   gpu.sh all FOLDER OUT MODEL... [-- FLAG...]  test, kernels and bench
#   gpu.sh kernels FOLDER OUT         there: GB/s of the decode kernels beside a copy within the device's memory
#   gpu.sh share FOLDER OUT MODEL     there, GPU or not: share_bench.py
# FOLDER is where the archive was unpacked; logs, result.json (a line a run) and tables.md go to OUT. Models of any shape come
# from isotherm-synthesize (tools/python). Without a GPU: gpu.sh bench build/release OUT MODEL=GiB -- --device host
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tests=(operators reference runner long_context split perturbation cold_stream hot_set)

bundle() {  # ARCHIVE [BUILD]
  local archive=$1 build=${2:-$root/build/cuda} folder file
  folder=$(mktemp -d)
  mkdir "$folder/bin" "$folder/lib"
  for file in "$build"/bin/{gateway,gpu_worker,cpu_worker,isotherm} "${tests[@]/#/$build/tests/gpu_worker_}" "$build/tests/gpu_kernel_bench"; do
    [[ -x $file ]] || file+=_test
    strip -o "$folder/bin/$(basename "$file")" "$file"
  done
  # The C and C++ runtimes are the one thing that every machine brings along.
  ldd "$folder"/bin/* | awk '/=> \// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s)\.so' |
    while read -r file; do strip -g -o "$folder/lib/$(basename "$file")" "$file"; done
  # One window over all: the binaries have most of their code in common.
  tar -C "$folder" -c . | xz --lzma2=preset=3,dict=192MiB >"$archive"
  rm -r "$folder"
}

use() {  # FOLDER: run what lies there, with the machine's own cuBLAS
  local cublas
  cublas=$(dirname "$(find -L /usr/local/cuda* /usr/lib -name 'libcublas.so.*' -print -quit)")
  export LD_LIBRARY_PATH=$1/lib:$cublas:/usr/local/nvidia/lib64 ISOTHERM_SOURCE_DIR=$root
}

run_tests() {  # FOLDER OUT
  use "$1"
  export ISOTHERM_TEST_DEVICE=cuda
  local name failed=0
  for name in "${tests[@]}"; do
    if "$1/bin/gpu_worker_${name}_test" >"$2/$name.log" 2>&1; then
      echo "$name: $(grep -E '^\[  PASSED' "$2/$name.log")"
    else
      failed=1
      grep -E -A4 'Failure|^\[  FAILED' "$2/$name.log" | head -n 30
    fi
  done
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$1/bin/gpu_worker_operators_test" >"$2/$tool.log" 2>&1 || failed=1
    echo "$tool: $(tail -n 1 "$2/$tool.log")"
  done
  return "$failed"
}

bench() {  # FOLDER OUT MODEL=GiB[:PREDICTOR]... [-- FLAG...]
  use "$1"
  local out=$2 run=("$root/tests/bench/gpu_bench.py" --bin "$1/bin" --json "$2/result.json") models=() model setting
  shift 2
  for (( ; $# > 0; )); do
    model=$1
    shift
    [[ $model != -- ]] || break
    models+=("$model")
  done
  for setting in "0 all" "+0.01 gate"; do
    "${run[@]}" "$@" --model "$root/models/tales/tales-q8_0.gguf" --vram-budget "${setting% *}" --predictor "${setting#* }" \
      --compare --tokens 200 --context 512 --kv-tokens 512 --sequences 1 --prefill --no-time-operators
  done
  # Room for a prompt of 512, and for 16 streams of a short prompt and 64 tokens: one load serves all.
  run+=(--sequences 1 4 16 --prefill 512 --context 640 --kv-tokens 1792 --time-operators)
  for model in "${models[@]}"; do
    setting=${model#*=}
    "${run[@]}" --model "${model%%=*}" --vram-budget "${setting%%:*}" \
      --predictor "$([[ $setting == *:* ]] && echo "${setting#*:}" || echo auto)" "$@"
  done
  "$root/tests/bench/bench_table.py" "$out/result.json" | tee "$out/tables.md"
}

kernels() {  # FOLDER OUT
  use "$1"
  "$1/bin/gpu_kernel_bench" >"$2/kernels.txt"
  "$root/tests/bench/bench_table.py" --kernels "$2/kernels.txt" | tee "$2/kernels.md"
}

all() {  # FOLDER OUT MODEL=GiB[:PREDICTOR]... [-- FLAG...]
  local failed=0
  run_tests "$1" "$2" || failed=1
  kernels "$1" "$2"
  bench "$@"
  return "$failed"
}

share() {  # FOLDER OUT MODEL
  use "$1"
  "$root/tests/bench/share_bench.py" --bin "$1/bin" --model "$3" | tee "$2/share.txt"
}

case ${1-} in
  bundle) bundle "${@:2}" ;;
  test) run_tests "${@:2}" ;;
  bench) bench "${@:2}" ;;
  all) all "${@:2}" ;;
  kernels) kernels "${@:2}" ;;
  share) share "${@:2}" ;;
  *) sed -n '2,11p' "$0" >&2; exit 2 ;;
esac
