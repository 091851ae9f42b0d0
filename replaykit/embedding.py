"""The features of any network: what its last layer sees."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from replaykit.gradients.heads import entering, find_head
from replaykit.gradients.scoring import scoring
from replaykit.gradients.structure import Structure


def last_layer(model: nn.Module, *args: Any) -> nn.Module:
    """The module with parameters that a forward pass enters last; modes, buffers and generators stay as found.

    Args:
        args: what the model takes; one row is enough.

    Raises:
        ValueError: no module with parameters is entered.
    """
    structure = Structure(model)
    with scoring(structure, gradients=False):
        return structure.modules[find_head(structure, args, len(args[0]))]


class Embedding(nn.Module):
    """A network without its last layer: inputs [n, ...] to what enters that layer [n, ...].

    Gradients and the mode are those of the network, which it holds as a submodule. A pass is one of the whole
    network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._head: list[nn.Module] = []  # in a list, so that it is not registered once more

    def forward(self, x: Tensor) -> Tensor:
        if not any(module is head for head in self._head for module in self.model.modules()):
            self._head = [last_layer(self.model, x[:1])]
        seen: list[Tensor] = []
        with entering(self._head[0], seen.append):
            self.model(x)
        return seen[-1]
