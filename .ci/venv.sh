#!/bin/sh
# venv.sh LOCK: makes .venv/ in the current folder, or adds to it: what LOCK names, and our two packages, editable.
# Touches nothing outside the folder. PYTHON=python3.12 chooses another interpreter.
set -eu

PYTHON=${PYTHON:-python3}
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

die() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || die "there is no $PYTHON" "apt-get install python3 python3-venv"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$PYTHON" --version) is too old, 3.11 is the oldest that works" "name a newer one: make PYTHON=python3.12"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$PYTHON cannot make virtual environments" "apt-get install python3-venv"

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "making .venv" >&2
    "$PYTHON" -m venv --clear .venv
fi
echo "installing $1" >&2
.venv/bin/python -m pip install --quiet --require-hashes --requirement "$1"
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . --editable code/runtime
.venv/bin/python -m compileall -q apps code/runtime/processor_runtime # as pip does with all else: no first start is slow
