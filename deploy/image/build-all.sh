#!/usr/bin/env bash
# Builds the images of all targets as IMAGES/TARGET:VERSION and IMAGES/TARGET:latest. Usage: build-all.sh [BUILD FLAGS]
# with ENGINE, IMAGES and VERSION in the environment, and GPU_BASE, what gpu_worker runs on if not the Dockerfile's BASE.
# ENGINE may hold global flags of the engine.
set -euo pipefail

cd "$(dirname "$0")/../.."
read -ra engine <<<"${ENGINE:-docker}"
images=${IMAGES:-localhost/isotherm}
version=${VERSION:-unknown}

format=()
# Without it podman writes OCI images, which have no health checks.
[[ "$(basename "${engine[0]}")" != podman ]] || format=(--format docker)

for target in gateway gpu_worker cpu_worker cli; do
  base=()
  [[ "$target" != gpu_worker || -z "${GPU_BASE:-}" ]] || base=(--build-arg BASE="$GPU_BASE")
  "${engine[@]}" build "${format[@]}" "$@" "${base[@]}" --file deploy/Dockerfile --target "$target" \
    --build-arg VERSION="$version" \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --build-arg CREATED="$(date --utc +%Y-%m-%dT%H:%M:%SZ)" \
    --tag "$images/$target:$version" --tag "$images/$target:latest" .
done
