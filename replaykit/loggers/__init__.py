"""Where a run's numbers go: the terminal, a file of JSON lines, Weights & Biases. Any mix of them at once."""

from replaykit.loggers.console import Console
from replaykit.loggers.jsonlines import JsonLines
from replaykit.loggers.values import Counts, Images, Logger, Matrix, Value
from replaykit.loggers.weights_and_biases import WandB

__all__ = ["Console", "Counts", "Images", "JsonLines", "Logger", "Matrix", "Value", "WandB"]
