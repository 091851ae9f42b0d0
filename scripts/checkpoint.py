"""Checkpoints: plain tensors and numbers, written whole or not at all, loaded without executing anything."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_whole(path: Path, text: str) -> None:
    """A reader finds the old file or the new one, never a part."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, in which two processes would write the same files; a kill lets go of it, too.

    Raises:
        ValueError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process runs in {folder}; wait for its end, or give another --name"
            ) from None
        yield


def save(path: Path, state: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any]:
    """The saved state.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file is not one.
    """
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path}; start without --resume, or check --name and --out")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); remove it and start again") from error
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} is not a checkpoint of these scripts; remove it and start again")
    return state


def generators() -> dict[str, Any]:
    """The state of every global generator that a training step may draw from."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), words, int(position), int(has_gauss), float(cached)],
        "python": [version, list(numbers), gauss],
    }


def set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors: equal exactly when every bit is."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
