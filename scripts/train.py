"""Train on a stream of tasks with a replay memory and end in an accuracy matrix.

    python scripts/train.py                                       # digits, no download
    python scripts/train.py --stream split_npz --data mine.npz --strategy er --policy class_balanced
    python scripts/train.py --name mine --resume                  # go on after a kill, to the same bits

Writes runs/<name>/: config.json, metrics.jsonl (a line an evaluation), result.json, accuracy_matrix.png,
memory_classes.png, checkpoint.pt.
"""

from __future__ import annotations

import sys

import tyro
from config import Config


def command(defaults: Config) -> None:
    """A command line over the configuration, with these defaults."""
    # Imported late: --help should not wait for PyTorch and Avalanche.
    config = tyro.cli(Config, default=defaults, description=__doc__)
    from experiment import Experiment

    try:
        try:
            experiment = Experiment(config)
        except TypeError as error:  # the types of the user's data; in training it would be an error of ours
            sys.exit(f"TypeError: {error}")
        experiment.run()
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        message = str(error).replace("download=True", "--download")
        sys.exit(f"{type(error).__name__}: {message}")


if __name__ == "__main__":
    command(Config())
