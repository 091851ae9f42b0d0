"""replaykit: replay memories for continual learning."""

from replaykit.buffer import Buffer
from replaykit.plan import Plan, Policy
from replaykit.store import Batch, Store

__all__ = ["Batch", "Buffer", "Plan", "Policy", "Store"]
__version__ = "0.1.0"
