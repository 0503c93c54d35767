# Sourced by the other scripts: makes .venv in the repository and installs the package into it.
#
# prepare_environment EXTRAS installs `.EXTRAS` (empty, or as in "[test]"), editable, so that the
# environment follows the checkout. It returns at once if nothing that decides about the packages
# has changed since it last succeeded. $python is the environment's interpreter afterwards.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
python="$root/.venv/bin/python"

_is_usable() { # a Python that is new enough and can make environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

_find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if _is_usable "$candidate"; then
            command -v "$candidate"
            return
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            echo "$PYTHON (from \$PYTHON) is no Python 3.10 or newer with venv and pip" >&2
            return 3
        fi
    done
    echo "Python 3.10 or newer with venv and pip is needed, and none was found; name one with PYTHON=..." >&2
    echo "(Debian and Ubuntu: apt install python3-venv)" >&2
    return 3
}

_stamp() { # what decides about the packages: the metadata, the extras, and the interpreter
    { echo "$1"; "$python" --version; cat "$root/setup.cfg" "$root/pyproject.toml" "${BASH_SOURCE[0]}"; } | cksum
}

prepare_environment() {
    local extras=$1 found stamp_file="$root/.venv/installed${1//[^a-z]/-}"
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        found=$(_find_python)
        echo "Making .venv with $("$found" --version)"
        "$found" -m venv --clear "$root/.venv"
    fi
    if [ "$(cat "$stamp_file" 2>/dev/null)" = "$(_stamp "$extras")" ]; then
        return
    fi
    echo "Installing the package into .venv; the first time this takes some minutes and gigabytes (PyTorch)"
    _pip_install "$root$extras"
    _stamp "$extras" >"$stamp_file"
    # Extras come on top of what the package itself needs.
    _stamp "" >"$root/.venv/installed"
}

_pip_install() { # TARGET
    local version pip=("$python" -m pip install --disable-pip-version-check)
    # On a terminal pip shows its progress; a log gets what goes wrong.
    if [ ! -t 1 ]; then pip+=(--quiet); fi
    # PyTorch comes first and then stays as it is: nothing that follows may put another build in its place.
    if ! "$python" -c 'from importlib.metadata import version; version("torch")' 2>/dev/null; then
        "${pip[@]}" 'torch==2.13.*'
    fi
    version=$("$python" -c 'from importlib.metadata import version; print(version("torch"))')
    echo "torch==$version" >"$root/.venv/constraints.txt"
    "${pip[@]}" -c "$root/.venv/constraints.txt" -e "$1"
}
