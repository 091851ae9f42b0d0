"""Gradients whose factors are all at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replaykit.gradients.budget import Budget
from replaykit.gradients.objective import Layout
from replaykit.gradients.outer import Outer
from replaykit.gradients.result import Blocks, PerSampleGradients
from replaykit.gradients.rows import row_numbers, run_of
from replaykit.store import IntArray


class FactoredGradients(PerSampleGradients):
    """Chunks of rows, each with its blocks.

    Args:
        chunks: row numbers (which together are 0 .. n - 1) and the blocks of those rows.
    """

    def __init__(
        self, layout: Layout, n: int, like: Tensor, budget: Budget, chunks: list[tuple[Tensor, Blocks]]
    ) -> None:
        super().__init__(layout, n, like, budget)
        self._held = chunks
        self._at: tuple[Tensor, Tensor] | None = None

    def _chunks(self) -> list[Tensor]:
        return [rows for rows, _ in self._held]

    def _blocks(self, chunk: int) -> Blocks:
        return self._held[chunk][1]

    def outer_product(self) -> tuple[Tensor, Tensor] | None:
        if len(self._held) != 1 or len(self._held[0][1]) != 1 or run_of(self._held[0][0]) != slice(0, self._n):
            return None
        (block,) = self._held[0][1].values()
        return block.outer_product() if isinstance(block, Outer) else None

    def rows(self, index: Tensor | IntArray | Sequence[int]) -> FactoredGradients:
        wanted = row_numbers(index, self._n).to(self._like.device)
        home, place = self._places()
        chunks = []
        for chunk, (_, blocks) in enumerate(self._held):
            here = (home[wanted] == chunk).nonzero().flatten()
            if len(here):
                local = place[wanted[here]]
                run = run_of(local)
                which = local if run is None else run
                chunks.append((here, {layer: block.take(which) for layer, block in blocks.items()}))
        return FactoredGradients(self.layout, len(wanted), self._like, self._budget, chunks)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Chunk of every row, and its place there [n]."""
        if self._at is None:
            home = torch.zeros(self._n, dtype=torch.int64, device=self._like.device)
            place = torch.zeros_like(home)
            for chunk, (rows, _) in enumerate(self._held):
                home[rows], place[rows] = chunk, torch.arange(len(rows), device=rows.device)
            self._at = home, place
        return self._at
