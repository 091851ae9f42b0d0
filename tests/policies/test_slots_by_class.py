from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaykit.policies.slots_by_class import SlotsByClass

#: True: add a row of this class; False: take out the row at this place of it, if there is one.
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 9)), max_size=80)


def book_of(*labels: int) -> SlotsByClass[int]:
    book: SlotsByClass[int] = SlotsByClass()
    for slot, label in enumerate(labels):
        book.add(label, slot)
    return book


@given(steps)
@settings(deadline=None)
def test_agrees_with_a_plain_list(changes: list[tuple[bool, int, int]]) -> None:
    book: SlotsByClass[int] = SlotsByClass()
    rows: dict[int, int] = {}
    for slot, (grows, label, place) in enumerate(changes):
        if grows:
            book.add(label, slot)
            rows[slot] = label
        elif place < book.count(label):
            taken = book.of(label)[place]
            assert book.remove(label, place) == taken
            assert rows.pop(taken) == label
        counted = Counter(rows.values())
        assert len(book) == len(rows)
        assert book.counts() == counted
        assert book.classes == len(counted)
        assert book.most == max(counted.values(), default=0)
        assert sorted(book.largest) == sorted(c for c in counted if counted[c] == book.most)
        for c in range(5):
            assert (c in book) == (c in counted)
            assert sorted(book.of(c)) == [s for s in rows if rows[s] == c] if c in book else True


@given(steps)
@settings(deadline=None)
def test_a_saved_book_goes_on_in_the_same_order(changes: list[tuple[bool, int, int]]) -> None:
    book: SlotsByClass[int] = SlotsByClass()
    for slot, (grows, label, place) in enumerate(changes):
        if slot == len(changes) // 2:
            other = SlotsByClass.from_state(book.state_dict(), int)
        if grows:
            book.add(label, slot)
        elif place < book.count(label):
            book.remove(label, place)
        if slot >= len(changes) // 2:
            if grows:
                other.add(label, slot)
            elif place < other.count(label):
                other.remove(label, place)
            assert other.largest == book.largest
            assert list(other.counts().items()) == list(book.counts().items())
            assert all(list(other.of(c)) == list(book.of(c)) for c in book.counts())


def test_the_draw_is_uniform_over_the_rows_of_the_largest_classes() -> None:
    book = book_of(7, 7, 7, 8, 9, 9, 9)
    drawn = Counter(book.draw_largest((i + 0.5) / 6000) for i in range(6000))
    assert drawn == {(c, place): 1000 for c in (7, 9) for place in range(3)}


def test_draws_stay_in_range_at_the_ends() -> None:
    book = book_of(*[3] * 7)
    assert book.draw_largest(0.0) == (3, 0)
    assert book.draw_largest(1 - 2**-53) == (3, 6)


def test_compact_renumbers_in_ascending_order() -> None:
    book = book_of(1, 1, 2, 2, 1)
    book.remove(1, 0)
    book.remove(2, 1)
    assert book.compact().tolist() == [1, 2, 4]
    assert {c: sorted(book.of(c)) for c in book.counts()} == {1: [0, 2], 2: [1]}
    empty: SlotsByClass[int] = SlotsByClass()
    assert empty.compact().tolist() == []


def test_classes_may_be_tuples() -> None:
    book: SlotsByClass[tuple[int, ...]] = SlotsByClass()
    book.add((1, 2), 0)
    book.add((), 1)
    again: SlotsByClass[tuple[int, ...]] = SlotsByClass.from_state(book.state_dict(), tuple)
    assert again.counts() == {(1, 2): 1, (): 1}


def _state() -> dict[str, object]:
    return book_of(5, 5, 6).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [5]},
        {"classes": [5, 5]},
        {"classes": [(5,), (6,)]},
        {"counts": torch.tensor([2, 2])},
        {"counts": torch.tensor([3, 0])},
        {"counts": torch.tensor([2.0, 1.0])},
        {"slots": torch.tensor([0, 0, 1])},
        {"slots": torch.tensor([0, -1, 1])},
        {"ranks": torch.tensor([1, 0])},
        {"ranks": torch.tensor([0])},
        {"ranks": [0, 0]},
        {"more": 1},
    ],
    ids=str,
)
def test_corrupt_states_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="state"):
        SlotsByClass.from_state({**_state(), **change}, int)


@pytest.mark.parametrize("state", [None, [], {}, 3])
def test_other_things_are_refused(state: object) -> None:
    with pytest.raises(ValueError, match="not the state of a book"):
        SlotsByClass.from_state(state, int)
