"""The imbalanced stream of Split-MNIST of Borsos et al. 2020: 22 batches of 125 rows, memory 100 (see --help).

python scripts/imbalanced_mnist.py --data data --policy reservoir
python scripts/imbalanced_mnist.py --data data --policy class_balanced
python scripts/imbalanced_mnist.py --data data --policy greedy_coreset --policy-options slots=1 ridge=1e-4
"""

from config import Config
from train import command

if __name__ == "__main__":
    command(
        Config(
            stream="imbalanced_mnist",
            strategy="greedy_coreset",
            optimizer="adam",
            fresh_optimizer=True,
            epochs=40,
            train_mb_size=256,
            normalise=True,
            evaluate="end",
        )
    )
