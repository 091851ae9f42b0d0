# Sourced by the other shell scripts: makes or reuses the virtual environment and puts it on the path.
#   VENV    where it lives (default: .venv in the repository)
#   PYTHON  the interpreter that makes it (default: python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"

prepare() { # prepare EXTRAS: install this checkout with the named extras, e.g. "" or "[test]"
    if [ ! -x "$VENV/bin/python" ]; then
        echo "making a virtual environment in $VENV"
        "${PYTHON:-python3}" -m venv "$VENV"
        # pip before 23.3 misreads an extra that avalanche-lib asks for.
        "$VENV/bin/python" -m pip install --quiet --upgrade pip
    fi
    echo "installing replaykit$1 (PyTorch is large: a few minutes the first time)"
    "$VENV/bin/python" -m pip install --quiet --editable ".$1"
    export PATH="$PWD/$VENV/bin:$PATH"
    case "$VENV" in /*) export PATH="$VENV/bin:$PATH" ;; esac
}
