"""Write the frozen embeddings of a data set to a file that --stream split_npz reads.

    python scripts/embed.py cifar10 --data data --out runs/cifar10_patches.npz
    python scripts/train.py --stream split_npz --data runs/cifar10_patches.npz --strategy er --memory 200

The embedding is a dictionary of patches (`replaykit.benchmarks.PatchEmbedding`), learned from the training images
without their labels; it needs no pretrained network.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from replaykit import benchmarks

DATA = {"mnist": benchmarks.mnist, "fashion_mnist": benchmarks.fashion_mnist, "cifar10": benchmarks.cifar10}


def main(
    name: Annotated[Literal["mnist", "fashion_mnist", "cifar10"], tyro.conf.Positional],
    out: Path,
    data: str = os.environ.get("REPLAYKIT_DATA", "data"),
    atoms: int = 200,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Embed a data set.

    Args:
        name: the data set.
        out: the file to write, .npz.
        data: folder with the data sets.
        atoms: entries of the dictionary; a vector has four times as many numbers.
        seed: of the dictionary.
        threads: CPU threads of torch.
    """
    for option, value, least in (("atoms", atoms, 1), ("seed", seed, 0), ("threads", threads, 1)):
        if value < least:
            sys.exit(f"ValueError: --{option} must be at least {least}, got {value}")
    torch.set_num_threads(threads)
    start = time.perf_counter()
    try:
        images = DATA[name](data)
        out.parent.mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
        vectors = benchmarks.embedded(images, benchmarks.PatchEmbedding(images.x_train, atoms, seed=seed))
    except (ValueError, OSError) as error:
        # There is no option to download here.
        cure = str(error).replace("pass download=True", "fetch them by scripts/train.py --download")
        sys.exit(f"{type(error).__name__}: {cure}")
    splits = {field: getattr(vectors, field).numpy() for field in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(out, **splits, classes=np.array(images.class_names))
    print(f"{out}: {tuple(splits['x_train'].shape)} rows in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
