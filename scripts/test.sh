#!/usr/bin/env bash
# Set up and run the default test suite. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare "[test]"
python -m pytest -q "$@"
