#!/usr/bin/env bash
# Tests what needs the simulator, in an environment of its own (.venv-libero): LIBERO and its assets are 1.3 GB, and
# rendering takes minutes. MuJoCo renders without a screen: with EGL, or with MUJOCO_GL=osmesa.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

uv=$(find_uv)
venv=$root/.venv-libero
make_venv "$uv" "$venv" 3.12
find_projects
"$uv" pip install --quiet --python "$venv/bin/python" -c constraints.txt "${projects[@]}" \
    -e "plugins/sfkit-libero[simulator]" "lerobot[smolvla,training]" pytest hypothesis

# LIBERO's configuration of the user stays as it is.
export LIBERO_CONFIG_PATH=$venv/libero HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$venv/bin/sfkit" libero setup
"$venv/bin/pytest" -c pyproject.toml -p no:cacheprovider -q plugins/lerobot_env_fast_libero/tests \
    plugins/sfkit-libero/tests "$@"
