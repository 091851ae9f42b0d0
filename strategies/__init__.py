"""Imported as `replaykit.strategies`; this folder is not a top-level module."""

if __name__ != "replaykit.strategies":
    raise ImportError("import replaykit.strategies instead of strategies")
