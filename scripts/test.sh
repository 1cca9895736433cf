#!/usr/bin/env bash
# Set up what the tests need, where it is missing, and run them. Arguments go to pytest: bash scripts/test.sh -k metrics
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements-dev.txt
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
