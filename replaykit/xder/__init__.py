"""The parts of X-DER, as functions of logits and labels; `replaykit.strategies.XDER` puts them together.

Source: Boschini, Bonicelli, Buzzega, Porrello and Calderara, Class-Incremental Continual Learning into the
eXtended DER-verse, TPAMI 2022.
"""

from replaykit.xder.batch_norm import training_mode, untracked
from replaykit.xder.heads import Heads, SeenOutputs, Stage, only
from replaykit.xder.logits import attenuate, first_of_each, implant, visit
from replaykit.xder.losses import (
    distance_preservation,
    full,
    future_constraint,
    future_preparation,
    past_constraint,
    restricted_cross_entropy,
)
from replaykit.xder.settings import Settings, published
from replaykit.xder.simplex import SimplexClassifier, simplex
from replaykit.xder.strong_view import strong_view

__all__ = [
    "Heads",
    "SeenOutputs",
    "Settings",
    "SimplexClassifier",
    "Stage",
    "attenuate",
    "distance_preservation",
    "first_of_each",
    "full",
    "future_constraint",
    "future_preparation",
    "implant",
    "only",
    "past_constraint",
    "published",
    "restricted_cross_entropy",
    "simplex",
    "strong_view",
    "training_mode",
    "untracked",
    "visit",
]
