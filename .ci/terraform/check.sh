#!/bin/sh
# check.sh: checks terraform/ as far as it can be without AWS and without its provider: format, validity, its own
# tests, checkov. Called in the root of a checkout. What it needs it installs into .venv-terraform/, nothing outside.
set -eu

PYTHON=${PYTHON:-python3}
venv=.venv-terraform
here=.ci/terraform
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

if ! cmp -s "$here/requirements.lock" "$venv/requirements.lock"; then
    echo "making $venv" >&2
    "$PYTHON" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --require-hashes --requirement "$here/requirements.lock"
    cp "$here/requirements.lock" "$venv/"
fi

# Both keep files in the home folder, and Terraform asks for newer versions of itself.
export HOME="$PWD/$venv" CHECKPOINT_DISABLE=1
"$venv/bin/python" "$here/check.py"
"$venv/bin/checkov" --config-file "$here/checkov.yaml"
