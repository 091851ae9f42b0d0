"""Policies: what a memory keeps. One algorithm, one file."""

from replaykit.policies.balanced_reservoir import BalancedReservoir
from replaykit.policies.chao import Chao
from replaykit.policies.class_balanced import ClassBalancedReservoir
from replaykit.policies.efraimidis_spirakis import EfraimidisSpirakis
from replaykit.policies.greedy_balanced import GreedyBalanced
from replaykit.policies.partitioning import PartitioningReservoir
from replaykit.policies.random_key import RandomKeyReservoir, merge
from replaykit.policies.reservoir import Reservoir
from replaykit.policies.ring import RingBuffer

__all__ = [
    "BalancedReservoir",
    "Chao",
    "ClassBalancedReservoir",
    "EfraimidisSpirakis",
    "GreedyBalanced",
    "PartitioningReservoir",
    "RandomKeyReservoir",
    "Reservoir",
    "RingBuffer",
    "merge",
]
