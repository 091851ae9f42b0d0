"""Split-CIFAR-10 in one pass: scripts/train.py with the defaults of the literature (see --help)."""

from config import Config
from train import command

if __name__ == "__main__":
    command(Config(stream="split_cifar10", memory=1000, augment=True, threads=2))
