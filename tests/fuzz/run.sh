#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for SECONDS_EACH (600) on a copy of its corpus. Fails on a finding, which is kept in
# build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v clang++ >/dev/null || {
  echo "fuzz: clang is needed (apt-get install clang)" >&2
  exit 1
}
test -f build/fuzz/build.ninja || cmake --preset fuzz --log-level=WARNING
cmake --build build/fuzz --parallel "$(nproc)" --target gguf_fuzz tokenizer_fuzz
mkdir -p build/fuzz/findings
for target in gguf tokenizer; do
  corpus=$(find tests -type d -path "*corpus/$target" | head -n 1)
  mkdir -p "build/fuzz/corpus-$target"
  "$(find build/fuzz -type f -name "${target}_fuzz" -perm -u+x)" -max_total_time="${SECONDS_EACH:-600}" -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/findings/ "build/fuzz/corpus-$target" "$corpus"
done
