#!/usr/bin/env bash
# Makes .venv if it is missing, installs the harness with a vLLM that fits this machine, and runs it.
#
#   scripts/run.sh --scenario Offline            an Offline test of the embedded demo model
#   scripts/run.sh --help                        what else it can do
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/venv.sh"
prepare_venv "$root" ""
# -P: not from the current folder, which may hold a harness/ of its own.
exec "$root/.venv/bin/python" -P -m harness "$@"
