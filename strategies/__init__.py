"""Imported as `replaykit.strategies`; this folder is not a top-level module."""

if __name__ != "replaykit.strategies":
    raise ImportError("import replaykit.strategies instead of strategies")

from replaykit.strategies.der import DER
from replaykit.strategies.derpp import DERpp
from replaykit.strategies.er import ER
from replaykit.strategies.er_ace import ERACE
from replaykit.strategies.gss import GSS
from replaykit.strategies.ocs import OCS

__all__ = [
    "DER",
    "ER",
    "ERACE",
    "GSS",
    "OCS",
    "DERpp",
]
