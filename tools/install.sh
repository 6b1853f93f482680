#!/usr/bin/env bash
# Installs hashed requirements into a virtual environment, compiled to bytecode: with uv, or else with pip.
#   tools/install.sh VENV REQUIREMENTS [UV]      UV: one that is there already
# uv takes a quarter of pip's time; it comes from PyPI by its own hashes in constraints.txt. It reads none of pip's
# settings, so pip does it all where pip has an index or a proxy of its own, and where uv does not get through.
set -euo pipefail
venv=$1 requirements=$2 uv=${3:-$1/bin/uv}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

own_settings() { # whether pip is told to go another way to the packages, by a file or by PIP_*
    "${pip[@]}" config list 2>/dev/null | grep -E "\.(index-url|no-index|proxy|client-cert|trusted-host)=" >/dev/null
}

with_uv() {
    [ -x "$uv" ] || {
        awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$root/constraints.txt" >"$venv/uv.txt"
        "${pip[@]}" install --quiet --require-hashes -r "$venv/uv.txt"
    } || return
    # As many retries as a hiccup needs: pip is there for whoever is not let through.
    UV_HTTP_RETRIES="${UV_HTTP_RETRIES:-2}" "$uv" pip install --quiet --no-progress \
        --python "$venv/bin/python" --compile-bytecode --require-hashes -r "$requirements"
}

if ! own_settings; then
    with_uv && exit
    echo "uv did not do it; going on with pip, which takes some minutes" >&2
fi
"${pip[@]}" install --quiet --require-hashes -r "$requirements"
