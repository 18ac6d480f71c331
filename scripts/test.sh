#!/usr/bin/env bash
# Makes .venv if it is missing and runs the tests; arguments go to pytest.
#
#   scripts/test.sh                      everything but the slow rehearsals, under 15 minutes on two cores: first what needs no
#                                        engine, two files at a time since most of them wait, then the engines by themselves
#   scripts/test.sh -n 0                 the same, one after the other
#   scripts/test.sh -m "not engine"      without real vLLM engines
#   scripts/test.sh -m slow              the rehearsals
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
prepare_venv "$PWD" dev
if [ $# = 0 ]; then
  .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not engine"
  exec .venv/bin/python -m pytest -m "engine and not slow"
fi
marks=(-m "not slow")
for argument in "$@"; do case $argument in -m | -m*) marks=() ;; esac; done
exec .venv/bin/python -m pytest "${marks[@]}" "$@"
