#!/bin/sh
# Makes or refreshes .venv from the lock files. Called by the Makefile, in the project's directory.
#
# A .venv that works is kept and brought to the locks; one that was moved, half made or made with another Python is made anew.
set -eu

here=$(pwd)
home_of_environment=.venv/.directory

say() { printf '%s\n' "$*" >&2; }

is_python_3_11() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3; do
        if [ -n "$candidate" ] && is_python_3_11 "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "Python 3.11 was not found (tried ${PYTHON:+$PYTHON, }python3.11 and python3). Nothing was installed."
    say "Install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv; macOS: brew install python@3.11; all: uv python install 3.11),"
    say "or name it: make demo PYTHON=/path/to/python3.11"
    exit 1
}

is_usable() {
    is_python_3_11 .venv/bin/python && .venv/bin/python -c 'import pip' 2>/dev/null || return 1
    # Scripts in bin/ name the directory they were installed in.
    [ ! -f "$home_of_environment" ] || [ "$(cat "$home_of_environment")" = "$here" ]
}

if ! is_usable; then
    python=$(find_python)
    say "Making .venv with $($python --version 2>&1)"
    if ! "$python" -m venv --clear .venv; then
        say "The virtual environment could not be made. On Debian and Ubuntu its module is a package of its own: apt-get install python3.11-venv"
        exit 1
    fi
fi
printf '%s\n' "$here" >"$home_of_environment"

say "Installing what the lock files name (the first time this downloads about 250 MB)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.lock
# pip goes without its cache where it may not write to it; uv has to be told.
if [ -z "${UV_CACHE_DIR:-}" ]; then
    cache=$(.venv/bin/uv cache dir 2>/dev/null || true)
    if [ -z "$cache" ] || ! mkdir -p "$cache" 2>/dev/null || ! ( : >"$cache/.writable" ) 2>/dev/null; then
        UV_NO_CACHE=1
        export UV_NO_CACHE
    else
        rm -f "$cache/.writable"
    fi
fi
: "${UV_HTTP_TIMEOUT:=180}"
export UV_HTTP_TIMEOUT

install_locked() {
    # Compiled now, or the first start would compile thousands of files.
    .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode "$@" requirements-dev.lock
}

# uv brings certificates of its own. A second try passes over a hiccup of the network, and works where a company's own authority is trusted
# by the system alone.
if ! install_locked; then
    say "Trying again, with the system's certificates"
    if ! install_locked --system-certs; then
        say "The packages could not be installed; what was downloaded is kept where there is a cache. Check the network and, if there is one, the"
        say "proxy (HTTPS_PROXY) and its certificates (SSL_CERT_FILE), then run the same command again."
        exit 1
    fi
fi
