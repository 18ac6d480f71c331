#!/usr/bin/env bash
# Style and types: ruff (lint and format) and mypy over the whole tree.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
prepare_venv "$PWD" dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
