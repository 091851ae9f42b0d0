"""Seconds and bytes: of some methods of an object, of forms in turn, and at the peak of a call."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


class Stopwatch:
    """Adds up the time inside methods of one object; a method that calls another of them counts once.

    It is the host's time: what an accelerator still computes when a method returns is not in it.
    """

    def __init__(self, target: object, *methods: str) -> None:
        self.seconds = 0.0
        self._inside = False
        for name in methods:
            setattr(target, name, self._timed(getattr(target, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        return timed


def alternate(
    repeats: int, *forms: Callable[[], T], calls: int = 1, best: bool = False
) -> tuple[list[T], list[float]]:
    """What each form returns, and the median seconds of a call, timed in turn after a warm-up.

    Args:
        calls: of a form in a block that is timed.
        best: the minimum over the blocks instead, for a machine that others use.
    """
    times: list[list[float]] = [[] for _ in forms]
    results: list[T] = []
    for repeat in range(repeats + 1):
        results = []
        for form, collected in zip(forms, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                result = form()
            if repeat:
                collected.append((time.perf_counter() - start) / calls)
            results.append(result)
    return results, [float(min(collected) if best else np.median(collected)) for collected in times]


def peak_bytes(run: Callable[[], T]) -> tuple[T, float, int]:
    """What a call returns, its seconds, and the bytes it holds at most, by the allocators' own account.

    The peaks of torch's and of NumPy's memory are added, so the figure is an upper bound. The time is that of a
    call without the accounts.
    """
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as recorded:
        run()
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = peak = 0
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return result, seconds, peak + arrays - before
