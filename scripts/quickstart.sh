#!/usr/bin/env bash
# Set up and run the main job: a split experiment on data that ships with scikit-learn.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare ""
python scripts/train.py --stream split_digits --strategy derpp --policy reservoir --memory 100 --epochs 5 --name quickstart --replace "$@"
