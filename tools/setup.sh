#!/usr/bin/env bash
# Creates .venv and installs this repository into it, editable. Does nothing if that is up to date.
#
# Environment variables, all optional:
#   PYTHON       the interpreter to build .venv with (default: the first Python >= 3.10 found)
#   EXTRAS       extras to install (default: test)
#   CONSTRAINTS  a pip constraints file, e.g. constraints-ci.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${EXTRAS-test}
constraints=${CONSTRAINTS:-}
stamp=.venv/.installed
candidates=(python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")

say() { printf '%s\n' "$*" >&2; }

# Prints the first candidate that is new enough and can make a virtual environment.
find_python() {
    local candidate
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' \
            >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Installs Debian packages if this user may do so without being asked for a password.
install_system_packages() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "Installing system packages: $*"
    ${as_root[@]+"${as_root[@]}"} apt-get update -qq >&2 &&
        ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" >&2
}

# Makes sure that the tests of the napari plugin find a screen; without one they are skipped.
install_screen() {
    [ "$(uname)" = Linux ] && [ -x /sbin/ldconfig ] || return 0
    local libraries package sign packages=() missing=()
    libraries=$(/sbin/ldconfig -p)
    while read -r package sign; do
        packages+=("$package")
        case $sign in
        -) ;;
        *.so.*) [[ $libraries == *"$sign "* ]] || missing+=("$package") ;;
        *) command -v "$sign" >/dev/null || missing+=("$package") ;;
        esac
    done < <(grep -v '^#' tools/gui-packages.txt)
    if [ "${#missing[@]}" -gt 0 ] && ! install_system_packages "${packages[@]}"; then
        say "The tests of the napari plugin need: sudo apt-get install ${missing[*]}"
        say "Without these they are skipped."
    fi
}

if [ -n "$constraints" ] && [ ! -f "$constraints" ]; then
    say "The constraints file $constraints does not exist."
    exit 1
fi

case ",$extras," in *,test,*) install_screen ;; esac

# An install without constraints is content with whatever satisfies pyproject.toml.
project_key="$PWD [$extras] ${PIP_CONSTRAINT:-} $(cat pyproject.toml tools/setup.sh | cksum)"
constraints_key=${constraints:+$(cksum <"$constraints")}
if [ -x .venv/bin/python ] && [ -f "$stamp" ]; then
    installed_constraints=
    { IFS= read -r installed_project && IFS= read -r installed_constraints; } <"$stamp" || true
    if [ "$installed_project" = "$project_key" ] &&
        { [ -z "$constraints" ] || [ "$installed_constraints" = "$constraints_key" ]; }; then
        exit 0
    fi
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if ! python=$(find_python); then
        install_system_packages python3 python3-venv || true
        if ! python=$(find_python); then
            say "No Python 3.10 or newer with the venv module was found (looked for: ${candidates[*]})."
            say "On Debian and Ubuntu: sudo apt-get install python3 python3-venv."
            say "Another interpreter can be named: make PYTHON=/path/to/python3 ..."
            exit 1
        fi
    fi
    say "Creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

say "Installing into .venv; the first time this takes a few minutes."
rm -f "$stamp"
.venv/bin/python -m pip install --disable-pip-version-check \
    ${constraints:+-c} ${constraints:+"$constraints"} -e ".${extras:+[$extras]}"
printf '%s\n%s\n' "$project_key" "$constraints_key" >"$stamp"
