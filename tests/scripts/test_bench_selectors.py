"""The benchmark of selectors at a small size: it runs, and what it times finds the same as what it is timed against."""

import subprocess
import sys
from pathlib import Path

import bench_selectors
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_ours_and_the_references_reach_the_same_objective() -> None:
    for name, case in bench_selectors.cases(160, 1).items():
        ours, reference = case.objective(case.ours()), case.objective(case.reference())
        # A stochastic choice of another generator is another one; scores are compared, not counted.
        loose = {"facility location, stochastic": 0.05, "bilevel scoring": 1e-6}
        assert ours == pytest.approx(reference, rel=loose.get(name, 1e-4), abs=loose.get(name, 1e-4)), name


def test_the_script_prints_times_growth_and_bytes() -> None:
    options = ["--sizes", "60", "100", "--threads", "1", "--repeats", "1", "--budget", "8"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench_selectors.py"), *options], capture_output=True, text=True, check=True
    )
    assert "60 to 100" in done.stdout and done.stdout.count("yes") == 6
    for name in ("facility location, lazy", "k-center", "OMP", "herding", "bilevel scoring"):
        assert done.stdout.count(name) >= 3
