import os
import sys
from pathlib import Path

import pytest
import torch

# `from reference.x import y`: the papers' literal loops, which only tests use.
sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is; tests that take it run on each."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    return request.param


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data, named by REPLAYKIT_DATA; tests that need it skip without."""
    root = os.environ.get("REPLAYKIT_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("set REPLAYKIT_DATA to a folder with MNIST and cifar10.npz")
    return Path(root)
