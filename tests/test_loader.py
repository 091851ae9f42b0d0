"""Slicing loaders: the batches of a DataLoader, and an order that is a function of seed and epoch."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from replaykit.loader import ShuffledLoader, SlicingLoader, reader


def columns(n: int = 23) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randint(256, (n, 2, 3), dtype=torch.uint8, generator=g),
        torch.arange(n),
        torch.rand(n, 4, generator=g),
    ]


def same(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> bool:
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(a, b, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_slicing_gives_what_a_dataloader_collates_and_draws_what_it_draws(shuffle: bool, drop_last: bool) -> None:
    data = columns()
    loader = DataLoader(TensorDataset(*data), 5, shuffle=shuffle, drop_last=drop_last)
    torch.manual_seed(3)
    theirs, state = [list(loader) for _ in range(2)], torch.random.get_rng_state()
    torch.manual_seed(3)
    slicing = SlicingLoader(data, loader.batch_sampler)
    ours = [list(slicing) for _ in range(2)]
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(slicing) == len(loader)


def test_a_generator_of_the_loader_is_used_instead_of_the_global_one() -> None:
    data = columns()
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    theirs = list(DataLoader(TensorDataset(*data), 5, shuffle=True, generator=first))
    again = DataLoader(TensorDataset(*data), 5, shuffle=True, generator=second)
    state = torch.random.get_rng_state()
    assert same(list(SlicingLoader(data, again.batch_sampler, generator=second)), theirs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.get_state(), second.get_state())


def test_indices_of_a_subset_count_its_rows() -> None:
    data, rows = columns(), np.array([7, 3, 3, 20])
    loader = SlicingLoader(data, [[0, 3], [2]], rows)
    assert [batch[1].tolist() for batch in loader] == [[7, 20], [3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.int16])
def test_columns_of_any_dtype_and_device_are_read(dtype: torch.dtype, device: str) -> None:
    column = torch.arange(12).view(6, 2).to(dtype).to(device)
    (rows,) = reader([column])(np.array([4, 0, 4]))
    assert rows.dtype == dtype and rows.device == column.device
    assert torch.equal(rows, column[[4, 0, 4]])


def test_batches_are_copies() -> None:
    data = columns()
    next(iter(SlicingLoader(data, [[1, 2]])))[2].zero_()
    assert torch.equal(data[2], columns()[2])


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same number of rows, got \[3, 2\]"):
        SlicingLoader([torch.zeros(3), torch.zeros(2)], [])


# -- the shuffled loader -------------------------------------------------------------------------------


def labels(loader: ShuffledLoader) -> list[list[int]]:
    return [batch[1].tolist() for batch in loader]


def test_an_epoch_shows_every_row_once_in_an_order_of_its_own() -> None:
    loader = ShuffledLoader(columns(), 5, seed=4)
    first, second = labels(loader), labels(loader)
    assert [len(batch) for batch in first] == [5, 5, 5, 5, 3] and len(loader) == 5
    assert all(sorted(chain(*epoch)) == list(range(23)) for epoch in (first, second))
    assert first != second and (loader.epoch, loader.batch) == (2, 0)
    assert labels(ShuffledLoader(columns(), 5, seed=4)) == first
    assert labels(ShuffledLoader(columns(), 5, seed=5)) != first


def test_no_global_generator_is_touched() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    labels(ShuffledLoader(columns(), 5, seed=4))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_anywhere_goes_on_as_if_nothing_had_happened(drop_last: bool) -> None:
    whole = ShuffledLoader(columns(), 5, 4, drop_last)
    epochs = [labels(whole) for _ in range(3)]
    for epoch in range(2):
        for position in range(len(whole) + 1):
            resumed = ShuffledLoader(columns(), 5, 4, drop_last, start_epoch=epoch, start_batch=position)
            assert labels(resumed) == epochs[epoch][position:]
            assert labels(resumed) == epochs[epoch + 1]


def test_the_position_counts_the_batches_handed_out() -> None:
    loader = ShuffledLoader(columns(), 5, 4)
    for handed_out, _ in enumerate(loader, start=1):
        assert (loader.epoch, loader.batch) == (0, handed_out)
        if handed_out == 3:
            break
    assert len(labels(loader)) == 2  # the rest of the epoch that was left
    assert (loader.epoch, loader.batch) == (1, 0)


def test_drop_last_leaves_out_the_short_batch() -> None:
    loader = ShuffledLoader(columns(), 5, 4, drop_last=True)
    assert [len(batch) for batch in labels(loader)] == [5, 5, 5, 5] and len(loader) == 4


def test_positions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="5 batches; there is no batch 6 of epoch 0"):
        ShuffledLoader(columns(), 5, 4, start_batch=6)
    with pytest.raises(ValueError, match="batch_size"):
        ShuffledLoader(columns(), 0, 4)
    with pytest.raises(ValueError, match="epoch -1"):
        ShuffledLoader(columns(), 5, 4, start_epoch=-1)
