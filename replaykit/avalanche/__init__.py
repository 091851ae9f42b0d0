"""Replay memories in Avalanche: a plugin for any strategy, and buffers for Avalanche's own plugin."""

from replaykit.avalanche.fresh_optimizer import FreshOptimizer
from replaykit.avalanche.replay import Replay
from replaykit.avalanche.reptile import Reptile
from replaykit.avalanche.storage_policy import StoragePolicy
from replaykit.avalanche.template import Template

__all__ = ["FreshOptimizer", "Replay", "Reptile", "StoragePolicy", "Template"]
