"""Imported as `replaykit.benchmarks`; this folder is not a top-level module."""

if __name__ != "replaykit.benchmarks":
    raise ImportError("import replaykit.benchmarks instead of benchmarks")
