"""The learning rates of passes over a memory, and how it is cut into steps."""

import numpy as np
import pytest
import torch

from replaykit.avalanche.memory_passes import blocks, rate, scale_rates


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


def test_rates_are_those_of_torch_after_a_pass_of_warming_up() -> None:
    sgd = optimizer(0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=1, T_mult=2, eta_min=0.0005)
    theirs = []
    for _ in range(255):
        theirs.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    assert [0.05 * rate(number) for number in range(1, 256)] == pytest.approx(theirs, rel=1e-12)
    assert rate(0) == 0.1 and [rate(n) for n in (1, 2, 4, 8, 128)] == [1.0] * 5
    assert rate(3) == pytest.approx(0.505) and rate(6) == pytest.approx(0.505) and 0.01 < rate(255) < 0.0102


def test_rates_are_scaled_from_the_first_ones() -> None:
    sgd = optimizer(0.2, 1.0)
    for factor in (0.1, 0.5, 1.0):
        scale_rates(sgd, factor)
        assert [group["lr"] for group in sgd.param_groups] == [0.2 * factor, factor]
    other = optimizer(9.0, 9.0)
    other.load_state_dict(sgd.state_dict())
    scale_rates(other, 0.5)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.5]


@pytest.mark.parametrize(
    ("n", "size", "lengths"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 2]), (0, 4, [])],
)
def test_blocks_have_no_last_row_of_their_own(n: int, size: int, lengths: list[int]) -> None:
    slots = np.arange(n) * 3
    cut = blocks(slots, size)
    assert [len(block) for block in cut] == lengths
    assert not n or (np.concatenate(cut) == slots).all()
