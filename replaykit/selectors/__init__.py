"""Selectors: which rows of a pool stand for all of it. One algorithm, one file.

The bare functions on tensors (`facility_location(similarity, k)`, `k_center(points, k)`, ...) are in the modules.
"""

from replaykit.selectors.badge import BADGE
from replaykit.selectors.bcsr import BCSR
from replaykit.selectors.bilevel import Bilevel
from replaykit.selectors.craig import CRAIG
from replaykit.selectors.facility_location import FacilityLocation
from replaykit.selectors.forgetting import Forgetting, ForgettingCounts
from replaykit.selectors.gradient_matching import GCR, GradMatch
from replaykit.selectors.grand import EL2N, GraNd
from replaykit.selectors.graph_cut import GraphCut
from replaykit.selectors.greedy import lazy, naive, stochastic
from replaykit.selectors.herding import Herding
from replaykit.selectors.importance import Importance
from replaykit.selectors.k_center import KCenter
from replaykit.selectors.kernels import RBF, Linear
from replaykit.selectors.log_determinant import LogDeterminant
from replaykit.selectors.merge_reduce import Slot, merge_reduce
from replaykit.selectors.moderate import Moderate
from replaykit.selectors.ntk import ConvolutionalNTK, FullyConnectedNTK
from replaykit.selectors.nystrom import Nystrom
from replaykit.selectors.pool import Pool, Selector, Vectors
from replaykit.selectors.problem import Problem, linear_problem, model_problem
from replaykit.selectors.proxy_loss import CrossEntropy, SquaredError
from replaykit.selectors.quotas import PerClass, equal, proportional
from replaykit.selectors.rainbow import (
    Rainbow,
    linspace_ranks,
    paper_ranks,
    release_ranks,
    uncertainty_from_votes,
    vote_uncertainty,
)
from replaykit.selectors.ranking import highest, lowest, middle
from replaykit.selectors.similarity import cosine, gaussian
from replaykit.selectors.uncertainty import Entropy, LeastConfidence, Margin

__all__ = [
    "BADGE",
    "BCSR",
    "CRAIG",
    "EL2N",
    "GCR",
    "RBF",
    "Bilevel",
    "ConvolutionalNTK",
    "CrossEntropy",
    "Entropy",
    "FacilityLocation",
    "Forgetting",
    "ForgettingCounts",
    "FullyConnectedNTK",
    "GraNd",
    "GradMatch",
    "GraphCut",
    "Herding",
    "Importance",
    "KCenter",
    "LeastConfidence",
    "Linear",
    "LogDeterminant",
    "Margin",
    "Moderate",
    "Nystrom",
    "PerClass",
    "Pool",
    "Problem",
    "Rainbow",
    "Selector",
    "Slot",
    "SquaredError",
    "Vectors",
    "cosine",
    "equal",
    "gaussian",
    "highest",
    "lazy",
    "linear_problem",
    "linspace_ranks",
    "lowest",
    "merge_reduce",
    "middle",
    "model_problem",
    "naive",
    "paper_ranks",
    "proportional",
    "release_ranks",
    "stochastic",
    "uncertainty_from_votes",
    "vote_uncertainty",
]
