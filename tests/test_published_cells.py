"""Published accuracies that a run of ours must reach. Minutes of training: run with ``-m slow``."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "split_mnist.py"
SEEDS = 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "published", "deviation"), [("er", 80.43, 1.89), ("der", 84.55, 1.64), ("derpp", 85.61, 1.40)]
)
def test_split_mnist_with_a_memory_of_200(
    strategy: str, published: float, deviation: float, data_root: Path, tmp_path: Path
) -> None:
    """Buzzega et al. 2020 (10 runs). The gate: two standard errors of the difference and half a point."""
    found = []
    for seed in range(SEEDS):
        options = ["--strategy", strategy, "--seed", str(seed), "--data", str(data_root), "--out", str(tmp_path)]
        subprocess.run([sys.executable, str(SCRIPT), *options], check=True, capture_output=True)
        (result,) = tmp_path.glob(f"*-{strategy}-*-{seed}/result.json")
        found.append(100 * json.loads(result.read_text())["average_accuracy"])
    mean = sum(found) / SEEDS
    ours = sum((value - mean) ** 2 for value in found) / (SEEDS - 1)
    assert abs(mean - published) <= 2 * math.sqrt(deviation**2 / 10 + ours / SEEDS) + 0.5, found
