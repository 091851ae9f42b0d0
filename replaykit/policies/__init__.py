"""Policies: what a memory keeps. One algorithm, one file."""

from replaykit.policies.reservoir import Reservoir

__all__ = ["Reservoir"]
