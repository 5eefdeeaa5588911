#!/usr/bin/env bash
# Builds the wheel of the core and of every plugin, and looks inside each.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

uv=$(find_uv)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for file in pyproject.toml plugins/*/pyproject.toml; do
    "$uv" build --quiet --wheel --out-dir "$work" "$(dirname "$file")"
done
.venv/bin/python scripts/check_wheels.py "$work"/*.whl
