#!/usr/bin/env bash
# Makes .venv if it is missing and runs the tests; arguments go to pytest.
#
#   scripts/test.sh                      everything but the slow rehearsals, under 15 minutes on two cores: two files of
#                                        tests at a time, since most of them wait (-n 0: one after the other)
#   scripts/test.sh -m "not engine"      without real vLLM engines, a minute or two
#   scripts/test.sh -m slow              the rehearsals
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
prepare_venv "$PWD" dev
marks=(-m "not slow")
for argument in "$@"; do case $argument in -m | -m*) marks=() ;; esac; done
exec .venv/bin/python -m pytest -n 2 --dist loadfile "${marks[@]}" "$@"
