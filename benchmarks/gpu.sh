#!/usr/bin/env bash
# Everything that is measured on a GPU, in one command and without a network: bash benchmarks/gpu.sh [--out DIR]
# [--minutes 8] [--parts right step ...] [--device cpu --toy]. Arguments go to benchmarks/gpu.py; its -h explains them.
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
PYTHONUNBUFFERED=1 exec "$python" -m benchmarks.gpu "$@"
