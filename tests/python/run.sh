#!/usr/bin/env bash
# Runs tools/python/tests with the interpreter of .venv, or else the system's. Exits with 77 (skipped) where numpy, gguf or pytest is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
"$python" -c 'import gguf, numpy, pytest' 2>/dev/null || {
  echo "skipped: $python has no gguf, numpy or pytest (make venv installs them)"
  exit 77
}
PYTHONPATH=tools/python exec "$python" -m pytest -q -p no:cacheprovider tools/python/tests
