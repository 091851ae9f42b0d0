"""Which rows of a memory to replay. One algorithm, one file.

Every retrieval returns filled slots only and, when fewer rows are stored than asked for, all of them
once (unless it draws with replacement).
"""

from replaykit.retrieval.aser import ASER
from replaykit.retrieval.base import GuidedRetrieval, Retrieval
from replaykit.retrieval.class_balanced import ClassBalanced
from replaykit.retrieval.mir import MIR
from replaykit.retrieval.uniform import Uniform
from replaykit.retrieval.weighted import Weighted

__all__ = [
    "ASER",
    "MIR",
    "ClassBalanced",
    "GuidedRetrieval",
    "Retrieval",
    "Uniform",
    "Weighted",
]
