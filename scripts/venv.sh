# Makes .venv and installs the project into it; sourced by run.sh, test.sh and check.sh, never run by itself.
#
#   prepare_venv ROOT EXTRAS     the project's folder; EXTRAS as pip writes them ("dev"): the engine found here is added.
#
# A second call with the same set-up returns at once: .venv/.installed-* holds the hash of all that the install depends on.
# PYTHON names the interpreter (default python3), ENGINE forces cpu, gpu or none.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 3; }

find_engine() {
  if [ -n "${ENGINE:-}" ]; then echo "$ENGINE"
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then echo gpu
  else echo cpu; fi
}

# Explains a failed pip run from its log, in one sentence.
explain() {
  local log=$1
  if grep -qi 'no space left' "$log"; then
    fail "the disk is full: the install needs about 5 GB (gpu: 12 GB) below $PWD/.venv; free some room and start again."
  elif grep -qiE 'no matching distribution.*torch|torch==' "$log" && grep -qi 'no matching distribution' "$log"; then
    fail "the package index lacks the CPU build of torch; take it from PyTorch's own index and start again. See $log."
  elif grep -qiE 'no matching distribution|could not find a version|connection|timed out|name resolution|retries' "$log"; then
    fail "the package index is out of reach or lacks a package: $(grep -m1 -iE 'no matching distribution|could not find|connection|timed out' "$log" | cut -c1-160). See $log."
  fi
  fail "pip failed; the last lines of $log are: $(tail -n 3 "$log" | tr '\n' ' ')"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >>"$VENV/install.log" 2>&1 || explain "$VENV/install.log"; }

prepare_venv() (
  cd "$1"
  VENV=$PWD/.venv
  local python=${PYTHON:-python3} engine extras stamp need free
  command -v "$python" >/dev/null 2>&1 || fail "no $python here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3."
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
    fail "$("$python" --version 2>&1) is not supported: Python 3.11 to 3.13 is needed; name one with PYTHON=/path/to/python3."
  engine=$(find_engine)
  extras=$2; [ "$engine" = none ] || extras=$engine${extras:+,$extras}
  stamp=$VENV/.installed-$({ echo "$extras $PWD"; "$python" --version; cat setup.cfg scripts/constraints.txt; } | sha256sum | cut -c1-16)
  [ -e "$stamp" ] && return 0

  need=5; [ "$engine" = gpu ] && need=12; [ "$engine" = none ] && need=1
  free=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
  [ "$free" -ge "$need" ] || [ -e "$VENV/install.log" ] || fail "$free GB are free here and the install needs about $need GB; free some room and start again."
  say "Installing into .venv (extras: ${extras:-none}); a first install takes a few minutes, later starts are instant."
  # One that is half made (Debian without python3-venv) or of another Python is made anew.
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || [ "$("$VENV/bin/python" --version)" != "$("$python" --version)" ]; then
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || fail "$python could not make a virtual environment in $VENV (on Debian: apt-get install python3-venv)."
  fi
  : >"$VENV/install.log"
  pip_install -c scripts/constraints.txt -e ".${extras:+[$extras]}"
  if [ "$engine" = cpu ]; then
    # These come along as CUDA builds and break `import transformers` beside a CPU torch.
    "$VENV/bin/python" -m pip uninstall -y torchvision torchaudio torchcodec >>"$VENV/install.log" 2>&1
  fi
  touch "$stamp"
  say "Installed."
)
