"""Split-CIFAR-100 in one pass: scripts/train.py with the defaults of the literature (see --help)."""

from config import Config
from train import command

if __name__ == "__main__":
    command(Config(stream="split_cifar100", memory=2000, augment=True, threads=2))
