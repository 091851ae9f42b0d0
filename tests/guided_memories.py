"""Memories and models for the retrievals that look at a model, and what must not change while they look."""

from __future__ import annotations

import random

import numpy as np
import torch
from reference import small_networks as nets
from torch import Tensor, nn

from replaykit import Batch, Buffer
from replaykit.policies import Reservoir


class Plain(nn.Module):
    """A body and a head, with dropout and BatchNorm statistics that are not the initial ones."""

    def __init__(self, inputs: int = 12, classes: int = nets.CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, classes)
        self.body[1].running_mean.normal_(std=0.3)
        self.body[1].running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def model(seed: int = 0) -> nn.Module:
    """In training mode, float64, in the middle of a step: with gradients."""
    torch.manual_seed(seed)
    made = Plain().double().train()
    nn.functional.cross_entropy(made(torch.randn(6, 12).double()), torch.arange(6) % nets.CLASSES).backward()
    return made


def stream(n: int, seed: int = 0, first: int = 0) -> Batch:
    """Rows numbered from `first` on, with inputs [n, 12] and labels of 5 classes."""
    g = torch.Generator().manual_seed(seed)
    return {
        "id": torch.arange(first, first + n),
        "x": torch.randn(n, 12, generator=g, dtype=torch.float64),
        "y": torch.randint(nets.CLASSES, (n,), generator=g),
    }


def memory(n: int, capacity: int = 0, seed: int = 0, device: str = "cpu") -> Buffer:
    """A reservoir that was offered n rows of `stream(n)`."""
    buffer = Buffer(capacity or n, Reservoir(), seed=seed, device=device)
    buffer.add(stream(n))
    return buffer


def trace(model: nn.Module, *batches: Batch) -> list[object]:
    """Everything that looking at a model must leave alone."""

    def bits(value: Tensor | None) -> object:
        return None if value is None else (value.dtype, value.data_ptr(), value.numpy(force=True).tobytes())

    return [
        [(name, module.training) for name, module in model.named_modules()],
        [(name, bits(p), bits(p.grad), p.requires_grad) for name, p in model.named_parameters()],
        [(name, bits(value)) for name, value in model.named_buffers()],
        [(list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks)) for m in model.modules()],
        [(name, bits(value)) for batch in batches for name, value in batch.items()],
        (bits(torch.get_rng_state())[2], random.getstate(), str(np.random.get_state())),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    ]
