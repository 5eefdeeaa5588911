#!/usr/bin/env bash
# Tests the core, and the plugins named below, as a stranger on an old system gets them: built wheels, Python 3.10,
# and every direct dependency at its lower bound. The checkout is not importable here, so that a file missing from the
# wheel, or a bound that is too low, fails. Tests of optional packages skip themselves.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

# Plugins that run on Python 3.10: their host frameworks, or what they depend on, have old releases.
plugins=(sfkit-backbones sfkit-openpi sfkit-openvla sfkit-store sfkit-tools)

uv=$(find_uv)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$root/.venv-lowest/bin/python

"$uv" build --quiet --wheel --out-dir "$work" .
forced=(--reinstall-package spatial-forcing) requirements=(-r pyproject.toml) tests=("$root/tests")
for plugin in "${plugins[@]}"; do
    "$uv" build --quiet --wheel --out-dir "$work" "plugins/$plugin"
    forced+=(--reinstall-package "$plugin")
    requirements+=(-r "plugins/$plugin/pyproject.toml")
    tests+=("$root/plugins/$plugin/tests")
done
make_venv "$uv" "$root/.venv-lowest" 3.10
# Only requirements read from the project files count as direct ones; those of a wheel would be resolved to
# the newest. The version number rarely changes while the code does, hence the forced reinstall. Without the sources of
# the workspace, so that the plugins get the wheel of the core.
"$uv" pip install --python "$python" --resolution lowest-direct --no-sources "${forced[@]}" \
    "${requirements[@]}" --group lowest "$work"/*.whl

cd "$work"
"$python" - "$root" sfkit "${plugins[@]//-/_}" <<'PY'
import importlib, pathlib, sys
for name in sys.argv[2:]:
    origin = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert "site-packages" in origin.parts, f"{name} comes from {origin}, not from the wheel"
assert sys.argv[1] not in sys.path, "the checkout is on sys.path"
PY
# Old releases of others meet newer neighbors here and say so: that is no fault of ours to fix.
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$root/.venv-lowest/bin/pytest" -c "$root/pyproject.toml" --rootdir "$root" \
    -p no:cacheprovider -W default::DeprecationWarning -n 2 --hypothesis-seed=0 -q "${tests[@]}" "$@"
