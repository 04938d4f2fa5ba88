#!/usr/bin/env bash
# Everything that a GPU decides, in under ten minutes, as one JSON document on stdout: `experiments/benchmarks/on_gpu.sh > gpu.json`.
# Progress goes to stderr. `--smoke` runs the same in a short form on the CPU. PYTHON names an interpreter instead of uv's.
set -euo pipefail
cd "$(dirname "$0")/../.."
export NO_ALBUMENTATIONS_UPDATE=1
exec ${PYTHON:-uv run python} experiments/benchmarks/on_gpu.py "$@"
