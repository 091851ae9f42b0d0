"""Which rows of a memory to replay. One algorithm, one file.

Every retrieval returns filled slots only and, when fewer rows are stored than asked for, all of them
once (unless it draws with replacement).
"""

from replaykit.retrieval.aser import ASER
from replaykit.retrieval.base import GuidedRetrieval, Retrieval
from replaykit.retrieval.class_balanced import ClassBalanced
from replaykit.retrieval.class_matched import ClassMatched
from replaykit.retrieval.grasp import GRASP
from replaykit.retrieval.least_replayed import LeastReplayed
from replaykit.retrieval.mir import MIR
from replaykit.retrieval.mixed_sources import MixedSources
from replaykit.retrieval.prioritised import Prioritised
from replaykit.retrieval.uniform import Uniform
from replaykit.retrieval.weighted import Weighted

__all__ = [
    "ASER",
    "GRASP",
    "MIR",
    "ClassBalanced",
    "ClassMatched",
    "GuidedRetrieval",
    "LeastReplayed",
    "MixedSources",
    "Prioritised",
    "Retrieval",
    "Uniform",
    "Weighted",
]
