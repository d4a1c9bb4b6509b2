#!/usr/bin/env bash
# Starts gateway, gpu_worker (device host) and cpu_worker on Unix sockets in a temporary folder, streams one story from the
# demo model and stops them again. Usage: demo.sh PROMPT [flags of `isotherm generate`]
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${ISOTHERM_BIN:-$root/build/release/bin}
model=${ISOTHERM_MODEL:-$root/models/tales/tales-q8_0.gguf}
prompt=${1:?usage: demo.sh PROMPT [flags of isotherm generate]}
shift

run=$(mktemp -d "${TMPDIR:-/tmp}/isotherm-demo.XXXXXX")
pids=()
stop() {
  local status=$?
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  if ((status != 0)); then
    echo "demo: failed; the processes' last words:" >&2
    tail -n 5 "$run"/*.log >&2 || true
  fi
  rm -rf "$run"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

start() {  # NAME FLAGS...
  local name=$1
  shift
  "$bin/$name" "$@" --metrics-listen= >"$run/$name.log" 2>&1 &
  pids+=($!)
}

# A budget that leaves a good part of the neurons to the CPU worker; see "plan:" in the GPU worker's log. It pays for the scratch
# of each thread, too, so that their number is fixed with it.
start cpu_worker --model="$model" --listen="unix:$run/cpu.sock"
start gpu_worker --model="$model" --listen="unix:$run/gpu.sock" --cpu-worker="unix:$run/cpu.sock" \
  --threads=2 --vram-budget="${ISOTHERM_VRAM_BUDGET:-0.0292}" --kv-tokens=1024 --max-prefill-rows=128 --max-decode-rows=8
start gateway --model="$model" --listen="unix:$run/gateway.sock" --worker="unix:$run/gpu.sock"

echo "$(basename "$model"): gateway, gpu_worker (device host) and cpu_worker are starting" >&2
printf '%s' "$prompt"
"$bin/isotherm" generate --address="unix:$run/gateway.sock" --wait=30s --require-cold "$@" -- "$prompt"
