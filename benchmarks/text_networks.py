"""A small network for token ids."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from replaykit.benchmarks.networks import Network, seeded


class TextNetwork(Network):
    """A `Network` whose inputs are token ids, int64 [n, length]."""

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [n, d] of x [n, length].

        Raises:
            TypeError: x is not int64, such as ids that a view has turned to floats.
        """
        if x.dtype != torch.int64:
            raise TypeError(
                f"the network got {x.dtype}, expected token ids, int64; leave the rows as they are stored"
            )
        features: Tensor = self.body(x)
        return features


class Bag(nn.Module):
    """The sum over the words of a window, of the size that one word has: [n, length, d] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / math.sqrt(x.shape[1])


def text_network(
    vocabulary: int,
    length: int,
    classes: int,
    pool: Literal["bag", "concatenate"] = "bag",
    embedding: int = 32,
    hidden: int = 64,
    seed: int | None = None,
) -> TextNetwork:
    """A vector for each word, pooled, then a hidden layer with ReLU.

    Source of ``"concatenate"``: Bengio et al., A Neural Probabilistic Language Model, JMLR 2003.

    Args:
        vocabulary: number of token ids.
        length: words of a window.
        pool: the sum of the vectors over √length, for which order does not matter, or all of them one after the
            other.
        embedding, hidden: lengths of a word's vector and of the features.

    Raises:
        ValueError: another pool.
    """
    if pool not in ("bag", "concatenate"):
        raise ValueError(f"pool is 'bag' or 'concatenate', got {pool!r}")
    with seeded(seed):
        mixed, width = (Bag(), embedding) if pool == "bag" else (nn.Flatten(), length * embedding)
        body = nn.Sequential(nn.Embedding(vocabulary, embedding), mixed, nn.Linear(width, hidden), nn.ReLU())
        return TextNetwork(body, hidden, classes)
