"""Policies: what a memory keeps. One algorithm, one file."""

from replaykit.policies.aser_reservoir import ShapleyReservoir
from replaykit.policies.asymmetric_balanced import ABS
from replaykit.policies.balanced_reservoir import BalancedReservoir
from replaykit.policies.bcsr import BCSR
from replaykit.policies.chao import Chao
from replaykit.policies.class_balanced import ClassBalancedReservoir
from replaykit.policies.coreset import Coreset
from replaykit.policies.efraimidis_spirakis import EfraimidisSpirakis
from replaykit.policies.feature_coresets import (
    FacilityLocation,
    GraphCut,
    Herding,
    KCenter,
    LogDeterminant,
    Moderate,
)
from replaykit.policies.gcr import GCR
from replaykit.policies.gradient_coresets import BADGE, CRAIG, GradMatch, GraNd, Importance
from replaykit.policies.greedy_balanced import GreedyBalanced
from replaykit.policies.greedy_coreset import GreedyCoreset
from replaykit.policies.gss_clust import GSSClust
from replaykit.policies.gss_greedy import GSSGreedy
from replaykit.policies.gss_iqp import GSSIQP
from replaykit.policies.icarl_herding import ICaRLHerding
from replaykit.policies.k_means import KMeans
from replaykit.policies.loss_aware import LARS
from replaykit.policies.loss_aware_balanced import LABRS
from replaykit.policies.mean_of_features import MeanOfFeatures
from replaykit.policies.ocs import OCS
from replaykit.policies.output_coresets import EL2N, Entropy, Forgetting, LeastConfidence, Margin
from replaykit.policies.partitioning import PartitioningReservoir
from replaykit.policies.rainbow_memory import RainbowMemory
from replaykit.policies.random_key import RandomKeyReservoir, merge
from replaykit.policies.reservoir import Reservoir
from replaykit.policies.ring import RingBuffer
from replaykit.policies.select_when_full import selected
from replaykit.policies.xder_memory import XDERMemory

__all__ = [
    "ABS",
    "BADGE",
    "BCSR",
    "CRAIG",
    "EL2N",
    "GCR",
    "GSSIQP",
    "LABRS",
    "LARS",
    "OCS",
    "BalancedReservoir",
    "Chao",
    "ClassBalancedReservoir",
    "Coreset",
    "EfraimidisSpirakis",
    "Entropy",
    "FacilityLocation",
    "Forgetting",
    "GSSClust",
    "GSSGreedy",
    "GraNd",
    "GradMatch",
    "GraphCut",
    "GreedyBalanced",
    "GreedyCoreset",
    "Herding",
    "ICaRLHerding",
    "Importance",
    "KCenter",
    "KMeans",
    "LeastConfidence",
    "LogDeterminant",
    "Margin",
    "MeanOfFeatures",
    "Moderate",
    "PartitioningReservoir",
    "RainbowMemory",
    "RandomKeyReservoir",
    "Reservoir",
    "RingBuffer",
    "ShapleyReservoir",
    "XDERMemory",
    "merge",
    "selected",
]
