"""Reads back what W&B wrote offline: the records of its .wandb files, by the published log format."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

_BLOCK, _HEADER, _IDENT = 32768, 7, 7


def payloads(data: bytes) -> Iterator[bytes]:
    """Payloads of a LevelDB log: 32 KiB blocks of fragments (crc, length, type), after W&B's own header."""
    assert data[:4] == b":W&B"
    at, joined = _IDENT, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + _HEADER])
        if kind == 0:
            return
        joined += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # a whole payload, or its last fragment
            yield joined
            joined = b""


@dataclass
class Written:
    """One offline run directory."""

    id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    finished: bool = False


def read(folder: Path, seconds: float = 15.0) -> list[Written]:
    """Every offline run below `folder`, the oldest first; waits so long at most for one to be finished."""
    return [_settled(path, seconds) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=_age)]


def _settled(path: Path, seconds: float) -> Written:
    """What a run wrote: W&B's own process may still be writing when the run has finished."""
    end = time.monotonic() + seconds
    while not (written := _read(path)).finished and time.monotonic() < end:
        time.sleep(0.1)
    return written


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _read(path: Path) -> Written:
    written = Written()
    for payload in payloads(path.read_bytes()):
        record = protocol.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            written.id, written.name = record.run.run_id, record.run.display_name
            written.project = record.run.project
            written.config |= _items(record.run.config.update)
        elif kind == "config":
            written.config |= _items(record.config.update)
        elif kind == "history":
            written.history.append(_items(record.history.item))
        elif kind == "summary":
            written.summary |= _items(record.summary.update)
        elif kind == "exit":
            written.finished = True
        elif kind == "metric":
            written.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return written


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = json.loads(item.value_json)
    return found
