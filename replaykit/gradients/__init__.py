"""Exact per-sample gradients, without forming them.

`per_sample_gradients` covers all parameters of a model, `last_layer_gradients` the last linear layer. Both
return a `PerSampleGradients`, which answers `norms`, `inner`, `cosine`, `gram`, `project`, `mean`,
`weighted_sum` and, if it must be, `explicit`.
"""

from replaykit.gradients.budget import DEFAULT as DEFAULT_BUDGET
from replaykit.gradients.last_layer import last_layer_gradients
from replaykit.gradients.losses import RowLoss, cross_entropy, squared_error, weighted
from replaykit.gradients.model_gradients import per_sample_gradients
from replaykit.gradients.result import DEGENERATE, PerSampleGradients

__all__ = [
    "DEFAULT_BUDGET",
    "DEGENERATE",
    "PerSampleGradients",
    "RowLoss",
    "cross_entropy",
    "last_layer_gradients",
    "per_sample_gradients",
    "squared_error",
    "weighted",
]
