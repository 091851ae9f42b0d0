"""Imported as `replaykit.strategies`; this folder is not a top-level module."""

if __name__ != "replaykit.strategies":
    raise ImportError("import replaykit.strategies instead of strategies")

from replaykit.strategies.agem import AGEM
from replaykit.strategies.der import DER
from replaykit.strategies.derpp import DERpp
from replaykit.strategies.er import ER
from replaykit.strategies.er_ace import ERACE
from replaykit.strategies.er_aml import ERAML
from replaykit.strategies.er_lwf import ERLwF
from replaykit.strategies.gcr import GCR
from replaykit.strategies.gdumb import GDumb
from replaykit.strategies.greedy_coreset import GreedyCoreset
from replaykit.strategies.gss import GSS
from replaykit.strategies.icarl import ICaRL
from replaykit.strategies.latent_replay import LatentReplay
from replaykit.strategies.mer import MER
from replaykit.strategies.mer_batched import MERBatched
from replaykit.strategies.ocs import OCS
from replaykit.strategies.rainbow_memory import RainbowMemory
from replaykit.strategies.rehearsal import Rehearsal
from replaykit.strategies.scr import SCR
from replaykit.strategies.xder import XDER, XDERCE, XDERRPC

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "ERACE",
    "ERAML",
    "GCR",
    "GSS",
    "MER",
    "OCS",
    "SCR",
    "XDER",
    "XDERCE",
    "XDERRPC",
    "DERpp",
    "ERLwF",
    "GDumb",
    "GreedyCoreset",
    "ICaRL",
    "LatentReplay",
    "MERBatched",
    "RainbowMemory",
    "Rehearsal",
]
