#!/usr/bin/env bash
# Builds the wheel of the core and of every plugin, looks inside each, renders its page as PyPI does, and installs them into
# an empty environment, where a new user's first steps must work without the checkout.
#
#   scripts/wheels.sh                   build, check, install
#   scripts/wheels.sh --release DIR     the same; leave the wheels in DIR, and refuse what must not be published
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

uv=$(find_uv)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=$work/dist release=()
if [ "${1:-}" = --release ]; then
    dist=$(realpath -m "$2") release=(--release)
fi
for file in pyproject.toml plugins/*/pyproject.toml; do
    "$uv" build --quiet --wheel --out-dir "$dist" "$(dirname "$file")"
done
.venv/bin/python scripts/check_wheels.py ${release[@]+"${release[@]}"} "$dist"/*.whl
.venv/bin/twine --no-color check --strict "$dist"/*.whl >"$work/twine" || { cat "$work/twine"; exit 1; }

# Ours come from these wheels; all else at the versions of constraints.txt, which setup has fetched already.
python=$work/venv/bin/python
"$uv" venv --quiet --python "$(find_python 3.12)" "$work/venv"
install=("$uv" pip install --quiet --python "$python" -c "$root/constraints.txt" --find-links "$dist")
mapfile -t lines < <(grep -oE 'spatial-forcing\[[a-z,-]+\]' README.md | sort -u)
cp scripts/new_user.py "$work"
cd "$work"
"${install[@]}" spatial-forcing
HF_HUB_OFFLINE=1 "$python" new_user.py core
"${install[@]}" "${lines[@]}"
HF_HUB_OFFLINE=1 "$python" new_user.py extras
