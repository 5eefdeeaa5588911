#!/usr/bin/env bash
# Makes .venv: Python 3.12, the core and every plugin in editable form, and the tools of the dev group,
# all at the versions of constraints.txt. Needs nothing but some Python 3 or a uv; safe to run again.
#
#   scripts/bootstrap.sh            make or renew .venv
#   scripts/bootstrap.sh --freeze   write constraints.txt anew from the newest versions that fit
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

uv=$(find_uv)
venv=.venv
constraints=(-c constraints.txt)
if [ "${1:-}" = --freeze ]; then
    # A fresh environment: versions installed already would otherwise be kept.
    venv=$(mktemp -d)/venv
    trap 'rm -rf "$(dirname "$venv")"' EXIT
    constraints=()
fi

make_venv "$uv" "$venv" 3.12
find_projects
"$uv" pip install --python "$venv/bin/python" ${constraints[@]+"${constraints[@]}"} "${projects[@]}" --group dev

if [ "${1:-}" = --freeze ]; then
    {
        echo "# What .venv gets on Python 3.12 (Linux, x86-64): exact versions, so that a red build has a cause here."
        echo "# Not limits for users: those stand in the pyproject files. Renew with: make freeze"
        "$uv" pip freeze --quiet --python "$venv/bin/python" --exclude-editable | grep '==' | LC_ALL=C sort -f
    } >constraints.txt.new
    mv constraints.txt.new constraints.txt
else
    touch .venv/.stamp
fi
