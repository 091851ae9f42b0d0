"""Gradients whose factors are all at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replaykit.gradients.budget import Budget
from replaykit.gradients.objective import Layout
from replaykit.gradients.result import Blocks, PerSampleGradients
from replaykit.gradients.rows import row_numbers
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

    def _chunks(self) -> list[Tensor]:
        return [rows for rows, _ in self._held]

    def _blocks(self, chunk: int) -> Blocks:
        return self._held[chunk][1]

    def rows(self, index: Tensor | IntArray | Sequence[int]) -> FactoredGradients:
        wanted = row_numbers(index, self._n).to(self._like.device)
        home, place = wanted.new_zeros(self._n), wanted.new_zeros(self._n)
        for chunk, (rows, _) in enumerate(self._held):
            home[rows], place[rows] = chunk, torch.arange(len(rows), device=rows.device)
        chunks = []
        for chunk, (_, blocks) in enumerate(self._held):
            here = (home[wanted] == chunk).nonzero().flatten()
            if len(here):
                local = place[wanted[here]]
                chunks.append((here, {layer: block.take(local) for layer, block in blocks.items()}))
        return FactoredGradients(self.layout, len(wanted), self._like, self._budget, chunks)
