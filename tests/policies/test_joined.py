"""Stored rows and arrivals as one batch."""

import numpy as np
import pytest
import torch
from torch import nn

from replaykit import Batch, Buffer, policies
from replaykit.gradients import cross_entropy, squared_error, weighted
from replaykit.policies.coreset import Coreset
from replaykit.policies.joined import joined
from replaykit.probe import Probe
from replaykit.selectors import Pool, Selector
from replaykit.store import Store


def rows(n: int, width: int, classes: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    columns = {"x": torch.randn(n, 5, generator=g), "y": torch.randint(0, classes, (n,), generator=g)}
    return {**columns, "logits": torch.randn(n, width, generator=g)} if width else columns


def test_plain_columns_are_put_together_and_others_left_out() -> None:
    store, old, new = Store(4), rows(3, 0, 2, 0), rows(2, 2, 2, 1)
    store.write(np.arange(3), old)
    assert joined(store, np.empty(0, np.int64), new) is new
    both = joined(store, np.array([2, 0]), {**new, "late": torch.ones(2)})
    assert torch.equal(both["x"], torch.cat((old["x"][[2, 0]], new["x"]))) and "late" not in both


@pytest.mark.parametrize(("stored", "given"), [(2, 4), (4, 2), (0, 3), (3, 3)])
def test_logits_of_different_widths_are_padded_and_say_so(stored: int, given: int) -> None:
    store, old, new = Store(4), rows(3, stored, 2, 0), rows(2, given, 2, 1)
    store.write(np.arange(3), old)
    both = joined(store, np.arange(3), new)
    widest = max(stored, given)
    assert both["logits"].shape == (5, widest)
    if stored:
        assert torch.equal(both["logits"][:3, :stored], old["logits"])
    assert not both["logits"][:3, stored:].any() and not both["logits"][3:, given:].any()
    assert torch.equal(both["logits"][3:, :given], new["logits"])
    if stored == given:
        assert "logits_width" not in both
    else:
        assert both["logits_width"].tolist() == [stored] * 3 + [given] * 2


def test_rows_that_were_padded_in_the_memory_keep_their_width() -> None:
    store = Store(6)
    store.write(np.arange(2), rows(2, 2, 2, 0))
    store.write(np.arange(2, 4), rows(2, 4, 4, 1))
    both = joined(store, np.arange(4), rows(2, 4, 4, 2))
    assert both["logits_width"].tolist() == [2, 2, 4, 4, 4, 4]


class Seen:
    """Keeps the first rows, and what it saw of the gradients."""

    needs = ("gradients",)

    def select(self, pool: Pool, k: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        self.gram = pool.vectors("gradients").gram()
        return torch.arange(k), torch.ones(k, dtype=torch.float64)


def test_a_head_that_grew_is_compared_on_the_logits_that_each_row_has() -> None:
    """The replay loss of GCR under three heads: of every row alone, the same gradients."""
    torch.manual_seed(0)
    loss = weighted((0.3, squared_error()), (0.5, cross_entropy()))
    selector: Selector = Seen()
    buffer = Buffer(8, Coreset(selector, "global"))
    known: list[Batch] = []
    for width in (2, 4, 6):
        model, batch = nn.Linear(5, width).double(), rows(12, width, width, width)
        batch = {name: c.double() if c.is_floating_point() else c for name, c in batch.items()}
        singles = [*known, *({name: c[i : i + 1] for name, c in batch.items()} for i in range(12))]
        gradients = []
        for row in singles:
            value = loss(model(row["x"]), row).sum()
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, model.parameters())]))
        buffer.add(batch, Probe(model, loss=loss, layers="last"))
        g = torch.stack(gradients)
        torch.testing.assert_close(selector.gram, g @ g.T)
        known = singles[:8]


def test_the_published_gcr_goes_on_when_the_head_grows() -> None:
    loss = weighted((0.1, squared_error()), (0.5, cross_entropy()))
    buffer = Buffer(8, policies.GCR(), seed=0)
    for width in (2, 4, 4, 5):
        probe = Probe(nn.Linear(5, width), loss=loss, layers="last")
        buffer.add(rows(20, width, width, width), probe)
        assert len(buffer) == 8
