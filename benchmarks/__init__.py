"""Data, scenarios, streams and networks for continual-learning experiments.

Imported as `replaykit.benchmarks`; this folder is not a top-level module.
"""

if __name__ != "replaykit.benchmarks":
    raise ImportError("import replaykit.benchmarks instead of benchmarks")

from replaykit.benchmarks.batches import in_batches
from replaykit.benchmarks.data import Data
from replaykit.benchmarks.domains import permuted, permuted_mnist, rotated, rotated_mnist
from replaykit.benchmarks.embeddings import embedded, split_embedded_digits
from replaykit.benchmarks.networks import Network, convnet, mlp
from replaykit.benchmarks.noise import CIFAR10_FLIPS, MNIST_FLIPS, noisy_labels
from replaykit.benchmarks.own import folder, npz
from replaykit.benchmarks.patches import PatchEmbedding
from replaykit.benchmarks.published import cifar10, cifar100, digits, fashion_mnist, mnist
from replaykit.benchmarks.resnet import resnet18, slim_resnet18
from replaykit.benchmarks.scenarios import (
    blurry,
    class_groups,
    class_incremental,
    domain_incremental,
    imbalanced_blocks,
)
from replaykit.benchmarks.splits import (
    imbalanced_mnist,
    split,
    split_cifar10,
    split_cifar100,
    split_digits,
    split_fashion_mnist,
    split_folder,
    split_mnist,
    split_npz,
)
from replaykit.benchmarks.stream import Stream
from replaykit.benchmarks.subsets import exponential_profile, long_tailed, subset
from replaykit.benchmarks.tabular import breast_cancer, permuted_breast_cancer, split_wine, wine
from replaykit.benchmarks.text import documentation, next_word, split_text
from replaykit.benchmarks.text_networks import TextNetwork, text_network

__all__ = [
    "CIFAR10_FLIPS",
    "MNIST_FLIPS",
    "Data",
    "Network",
    "PatchEmbedding",
    "Stream",
    "TextNetwork",
    "blurry",
    "breast_cancer",
    "cifar10",
    "cifar100",
    "class_groups",
    "class_incremental",
    "convnet",
    "digits",
    "documentation",
    "domain_incremental",
    "embedded",
    "exponential_profile",
    "fashion_mnist",
    "folder",
    "imbalanced_blocks",
    "imbalanced_mnist",
    "in_batches",
    "long_tailed",
    "mlp",
    "mnist",
    "next_word",
    "noisy_labels",
    "npz",
    "permuted",
    "permuted_breast_cancer",
    "permuted_mnist",
    "resnet18",
    "rotated",
    "rotated_mnist",
    "slim_resnet18",
    "split",
    "split_cifar10",
    "split_cifar100",
    "split_digits",
    "split_embedded_digits",
    "split_fashion_mnist",
    "split_folder",
    "split_mnist",
    "split_npz",
    "split_text",
    "split_wine",
    "subset",
    "text_network",
    "wine",
]
