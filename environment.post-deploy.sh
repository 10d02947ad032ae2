#!/usr/bin/env bash
# Into the conda environment of environment.yml, at the top of the checkout: the pins as they are, and this package.
set -euo pipefail
python -m pip install --no-deps --require-hashes -r requirements.lock
python -m pip install --no-deps -e .
