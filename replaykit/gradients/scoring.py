"""Scoring a model without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from replaykit.gradients.structure import Structure

MODES = ("eval", "keep")


@contextmanager
def scoring(structure: Structure, mode: str = "eval", gradients: bool = True) -> Iterator[None]:
    """Run the body with the model in evaluation mode; put modes, buffers and global generators back.

    Args:
        mode: "eval" switches every module to evaluation mode; "keep" leaves the modes as they are, and so
            refuses a model whose rows are random or depend on each other.
        gradients: whether operations of the body are recorded for differentiation, whatever the caller's
            setting (``no_grad``, ``inference_mode``).

    Raises:
        ValueError: BatchNorm that uses the statistics of the batch, or active dropout in mode "keep".
    """
    refuse_mixing(structure, mode)
    switched = [module for module in structure.modules.values() if module.training and mode == "eval"]
    state, cuda = torch.get_rng_state(), _accelerator(structure)
    cuda_state = None if cuda is None else torch.cuda.get_rng_state(cuda)
    try:
        # The flag itself, not train(): a model may override train() with more than a change of mode.
        for module in switched:
            _set_training(module, False)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            # A forward pass may write to buffers: it gets copies.
            for module, name, buffer in structure.buffers:
                module._buffers[name] = buffer.detach().clone()
            yield
    finally:
        for module in switched:
            _set_training(module, True)
        torch.set_rng_state(state)
        if cuda is not None and cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, cuda)
        for module, name, buffer in structure.buffers:
            module._buffers[name] = buffer


def refuse_mixing(structure: Structure, mode: str) -> None:
    """Raise `ValueError` if in this mode a row's result depends on the other rows, or on chance."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {MODES}, got {mode!r}")
    for name, module in structure.modules.items():
        training = module.training and mode == "keep"
        if isinstance(module, _BatchNorm) and (training or module.running_mean is None):
            if training:
                why = "is in training mode"
                cure = "use mode='eval' (which restores the mode), call model.eval() first, or"
            else:
                why, cure = "keeps no running statistics", "give it some, or"
            raise ValueError(
                f"BatchNorm {name!r} {why}: it normalises a row with the other rows of its batch, so that a "
                f"row has no gradient of its own; {cure} replace it by GroupNorm"
            )
        if training and isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(
                f"dropout {name!r} is active, so scores would be random; use mode='eval', which restores the "
                "mode, or call model.eval() first"
            )


def _set_training(module: nn.Module, training: bool) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        module.training = training
    else:
        module.__dict__["training"] = training  # an assignment would search parameters and buffers first


def _accelerator(structure: Structure) -> torch.device | None:
    """The CUDA device of the model, whose generator a forward pass might touch."""
    parameter = next(iter(structure.parameters.values()), None)
    return parameter.device if parameter is not None and parameter.is_cuda else None
