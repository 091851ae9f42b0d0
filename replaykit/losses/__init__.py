"""Replay losses: what the rows of a memory add to the loss of a training step.

A replay loss is a function ``(model, draw) -> Tensor []``. `draw()` returns a fresh batch of the memory
whose ``x`` is ready for the model; a loss that wants two independent batches draws twice. The attribute
``columns`` names what the loss reads, so that a plugin knows what to store and what to fetch; a plain
function without it is given every column. A term whose coefficient is 0 is left out, forward pass and draw
included.
"""

from replaykit.losses.asymmetric import AsymmetricCrossEntropy, ace_mask
from replaykit.losses.base import Draw, Model, ReplayLoss, TaskAware, columns_of, outputs
from replaykit.losses.cross_entropy import CrossEntropy, WeightedCrossEntropy
from replaykit.losses.derpp import DERpp
from replaykit.losses.distillation import Distillation
from replaykit.losses.features import Features, FeatureSource
from replaykit.losses.logits import MSELogits
from replaykit.losses.metric import AML, asymmetric_metric, draw_partners
from replaykit.losses.sums import Sum
from replaykit.losses.supcon import SupCon

__all__ = [
    "AML",
    "AsymmetricCrossEntropy",
    "CrossEntropy",
    "DERpp",
    "Distillation",
    "Draw",
    "FeatureSource",
    "Features",
    "MSELogits",
    "Model",
    "ReplayLoss",
    "Sum",
    "SupCon",
    "TaskAware",
    "WeightedCrossEntropy",
    "ace_mask",
    "asymmetric_metric",
    "columns_of",
    "draw_partners",
    "outputs",
]
