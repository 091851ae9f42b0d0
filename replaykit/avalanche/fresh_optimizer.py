"""A new optimiser for every experience."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SupervisedPlugin


class FreshOptimizer(SupervisedPlugin):
    """Forgets moments and step counts before the training on each experience.

    That is what making the optimiser anew comes to: its settings and its parameters stay. A plugin that loads a
    saved state of the optimiser has to come after this one.
    """

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        strategy.optimizer.state.clear()
