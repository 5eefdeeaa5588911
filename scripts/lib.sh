# Shared by the scripts in this folder (sourced, not run): uv, the Python interpreters, environments and projects.
#
# A name on PATH proves nothing: a pyenv shim may exist and still refuse to run. So every candidate is
# started once and asked who it is, and callers get a real path.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Single wheels of torch come close to a gigabyte; uv's own limit of 30 s is short for a slow line.
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
# What is active in the user's shell must not leak into what is built and tested here.
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME

say() { printf '%s\n' "$*" >&2; }

pyenv_versions() { # [PREFIX]: pyenv's real interpreters, newest first, whatever its shims point at
    local dir
    for dir in "${PYENV_ROOT:-}" "${HOME:-/nonexistent}/.pyenv" "$(pyenv root 2>/dev/null || true)"; do
        [ -n "$dir" ] && ls -d "$dir"/versions/"${1:-3}"* 2>/dev/null | sort -rV
    done
    return 0
}

# `uv pip install --group` is the youngest feature that these scripts need.
uv_works() { "$1" --version >/dev/null 2>&1 && "$1" pip install --help 2>/dev/null | grep -q -- '--group'; }

find_uv() { # prints the path of a working uv; makes a private one in .uv when there is none
    local uv python
    for uv in "${UV:-}" uv "${HOME:-/nonexistent}/.local/bin/uv" "${HOME:-/nonexistent}/.cargo/bin/uv" "$root/.uv/bin/uv"; do
        if [ -n "$uv" ] && uv_works "$uv"; then
            command -v "$uv"
            return
        fi
    done
    say "no working uv found: installing one into .uv"
    while read -r python; do
        # Some system Pythons come without venv or ensurepip: then the next one is tried.
        if "$python" -m venv --clear "$root/.uv" >/dev/null 2>&1 \
            && "$root/.uv/bin/python" -m pip install --quiet 'uv>=0.8' >&2 \
            && uv_works "$root/.uv/bin/uv"; then
            echo "$root/.uv/bin/uv"
            return
        fi
    done < <(printf '%s\n' python3 python; pyenv_versions | sed 's|$|/bin/python3|'; echo /usr/bin/python3)
    say "could not install uv: install it yourself, or set UV to its path"
    return 1
}

find_python() { # VERSION: prints a real interpreter, or the bare version, which uv resolves or downloads
    local python found
    while read -r python; do
        found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null) || continue
        if [ "${found%% *}" = "$1" ]; then
            echo "${found#* }"
            return
        fi
    done < <(echo "python$1"; pyenv_versions "$1" | sed "s|\$|/bin/python$1|")
    echo "$1"
}

make_venv() { # UV FOLDER VERSION: an environment of that Python; one that is there already stays
    if [ "$("$2/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$3" ]; then
        rm -rf "$2"
        "$1" venv --quiet --python "$(find_python "$3")" "$2"
    fi
}

find_projects() { # sets projects: the core and every plugin, in editable form, as arguments of `uv pip install`
    local file
    projects=(-e .)
    for file in plugins/*/pyproject.toml; do
        projects+=(-e "$(dirname "$file")")
    done
}
