# Sourced by the other scripts: where things are.  Sets HOME where it is unset, and CDI_ROOT, CDI_CACHE, CDI_PYTHON, CDI_VENV.
# Everything that is built lives under CDI_CACHE, outside the checkout, so that the checkout stays clean.

CDI_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Services and containers may run without HOME; the shell then takes ~ from the user database.
if [ -z "${HOME:-}" ]; then
    unset HOME
    HOME=~
    export HOME
fi
CDI_CACHE=${CDI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cdi}
case $CDI_CACHE in
    /*) ;;
    *) CDI_CACHE=$PWD/$CDI_CACHE ;;
esac
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export CDI_CACHE PATH

# The first Python that is new enough and can make virtual environments; empty where there is none.  $CDI_PYTHON overrides.
# Within a virtual environment it is the one that this was made with, or there would be environments of environments.
find_python() {
    local candidate
    for candidate in ${CDI_PYTHON:+"$CDI_PYTHON"} python3.11 python3.12 python3.13 python3.14 python3 /usr/bin/python3; do
        if "$candidate" -c 'import sys, ensurepip, venv
if sys.version_info < (3, 11): sys.exit(1)
print(sys._base_executable)' 2>/dev/null; then
            return
        fi
    done
}

# A line "MINOR PATH" for each version of Python 3 from 3.11 on that can make virtual environments, the oldest first: those on
# PATH, and pyenv's.
offered_pythons() {
    local candidate
    for candidate in python3.{11..19} python3 /usr/bin/python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        "$candidate" -c 'import sys, ensurepip, venv
if sys.version_info < (3, 11): sys.exit(1)
print(sys.version_info.minor, sys._base_executable)' 2>/dev/null || true
    done | sort -n -u -k 1,1
}

# One environment per checkout, Python, pyproject.toml and locked packages: an editable install points at one checkout, and
# branches that require other dependencies have separate directories.
venv_path() {
    local key
    key=$({ printf '%s\n' "$CDI_ROOT"; "$1" -c 'import sys; print(sys.executable, sys.version)'
            cat "$CDI_ROOT/pyproject.toml" "$CDI_ROOT"/requirements/*.txt; } | sha256sum | cut -c1-12)
    printf '%s/venv-%s\n' "$CDI_CACHE" "$key"
}

CDI_PYTHON=$(find_python)
CDI_VENV=${CDI_PYTHON:+$(venv_path "$CDI_PYTHON")}
