#!/usr/bin/env bash
# Prints the path of a Python this project runs on, or names what this machine lacks and how to get it.
#   tools/environment.sh [interpreter …]     with no argument it tries the usual names
set -euo pipefail

if [ $# -gt 0 ]; then names=("$@"); else names=(python3.12 python3.11 python3.13 python3); fi

probe='
import os, platform, struct, sys
def lack(what, how):
    print(f"{what}\t{how}")
    sys.exit(3)
if sys.implementation.name != "cpython":
    lack(f"it is {platform.python_implementation()}", "CPython is needed")
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    lack("it is Python %d.%d" % sys.version_info[:2], "3.11, 3.12 or 3.13 is needed")
if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
    lack(f"the system is {platform.system()} without glibc", "a glibc Linux is needed (Debian, Ubuntu, Fedora; not Alpine)")
if platform.machine() not in ("x86_64", "aarch64") or struct.calcsize("P") != 8:
    lack(f"the machine is {platform.machine()}", "x86-64 or arm64, 64 bits, is needed")
try:
    import ensurepip, venv
except ImportError as error:
    lack(f"its module {error.name} is missing", "Debian and Ubuntu: apt-get install python%d.%d-venv" % sys.version_info[:2])
print(sys.executable)
'

reasons=()
for name in "${names[@]}"; do
    path=$(command -v "$name" 2>/dev/null) || { reasons+=("  $name: not found"); continue; }
    if answer=$("$path" -I -c "$probe" 2>/dev/null); then
        printf '%s\n' "$answer"
        exit 0
    fi
    case $answer in
        *$'\t'*) reasons+=("  $name: ${answer%%$'\t'*}; ${answer#*$'\t'}") ;;
        *) reasons+=("  $name: does not start") ;;
    esac
done

{
    echo "No Python here runs Carrel, which needs CPython 3.11, 3.12 or 3.13 with venv on a glibc Linux (x86-64 or arm64). Tried:"
    printf '%s\n' "${reasons[@]}"
    echo "To get one: Debian and Ubuntu: apt-get install python3 python3-venv; Fedora: dnf install python3.12;"
    echo "elsewhere: pyenv install 3.12, or uv python install 3.12. Then: make setup PYTHON=/path/to/python3.12"
} >&2
exit 1
