"""Fixed random maps from p gradient entries to k numbers that keep inner products on average.

The map is a function of (seed, kind, k, position of the parameter): the same for every call of a run, on
every device and for every budget. Entries are made in pieces and thrown away, never stored.

    gaussian    entries N(0, 1/k):  Var <Rx, Ry> = (|x|²|y|² + <x, y>²) / k
    rademacher  entries ±1/√k:      the same less 2 Σ x_i² y_i² / k
    count       one signed bucket for each entry: O(p) time, no matrix, the same bound

Do not compare sketches of gradients taken at different parameters.

Source: Johnson and Lindenstrauss 1984; Achlioptas, Database-friendly random projections, 2003; Charikar,
Chen and Farach-Colton, Finding frequent items in data streams, 2002.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

KINDS = ("gaussian", "rademacher", "count")
_PIECE = 2**18  # entries of a dense map made at a time


def add_sketch(part: Tensor, place: slice, out: Tensor, seed: int, kind: str = "gaussian") -> None:
    """Add the sketch of some entries of n gradients [n, size], lying at `place`, to `out` [n, k].

    Raises:
        ValueError: an unknown kind of map.
    """
    if kind not in KINDS:
        raise ValueError(f"a sketch is one of {KINDS}, got {kind!r}")
    k = out.shape[1]
    if kind == "count":
        bucket, sign = _buckets(place, k, seed)
        signed = part * torch.from_numpy(sign).to(part)
        out.index_add_(1, torch.from_numpy(bucket).to(part.device), signed)
        return
    step = max(1, _PIECE // k)
    for start in range(0, part.shape[1], step):
        columns = part[:, start : start + step]
        rng = _generator(seed, kind, k, place.start + start)
        if kind == "gaussian":
            entries = rng.standard_normal((columns.shape[1], k), np.float32)
        else:
            entries = rng.integers(0, 2, (columns.shape[1], k), np.int8).astype(np.float32) * 2 - 1
        out += columns @ torch.from_numpy(entries).to(part) / k**0.5


def _buckets(place: slice, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = _generator(seed, "count", k, place.start)
    size = place.stop - place.start
    return rng.integers(0, k, size), rng.integers(0, 2, size, np.int8) * 2 - 1


def _generator(seed: int, kind: str, k: int, position: int) -> np.random.Generator:
    return np.random.default_rng([seed, KINDS.index(kind), k, position])
