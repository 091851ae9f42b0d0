"""Policies: what a memory keeps. One algorithm, one file."""

from replaykit.policies.aser_reservoir import ShapleyReservoir
from replaykit.policies.balanced_reservoir import BalancedReservoir
from replaykit.policies.chao import Chao
from replaykit.policies.class_balanced import ClassBalancedReservoir
from replaykit.policies.coreset import Coreset
from replaykit.policies.efraimidis_spirakis import EfraimidisSpirakis
from replaykit.policies.greedy_balanced import GreedyBalanced
from replaykit.policies.gss_clust import GSSClust
from replaykit.policies.gss_greedy import GSSGreedy
from replaykit.policies.gss_iqp import GSSIQP
from replaykit.policies.k_means import KMeans
from replaykit.policies.mean_of_features import MeanOfFeatures
from replaykit.policies.ocs import OCS
from replaykit.policies.partitioning import PartitioningReservoir
from replaykit.policies.random_key import RandomKeyReservoir, merge
from replaykit.policies.reservoir import Reservoir
from replaykit.policies.ring import RingBuffer
from replaykit.policies.select_when_full import selected

__all__ = [
    "GSSIQP",
    "OCS",
    "BalancedReservoir",
    "Chao",
    "ClassBalancedReservoir",
    "Coreset",
    "EfraimidisSpirakis",
    "GSSClust",
    "GSSGreedy",
    "GreedyBalanced",
    "KMeans",
    "MeanOfFeatures",
    "PartitioningReservoir",
    "RandomKeyReservoir",
    "Reservoir",
    "RingBuffer",
    "ShapleyReservoir",
    "merge",
    "selected",
]
