import copy
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import replaykit as rk
from replaykit import Batch, Buffer, Plan, Policy, Store, policies, retrieval
from replaykit.policies import RandomKeyReservoir, Reservoir, RingBuffer
from replaykit.testing import example_stream, reloaded, same


def rows(n: int, start: int = 0) -> Batch:
    return {
        "id": torch.arange(start, start + n),
        "x": torch.arange(start, start + n, dtype=torch.float32)[:, None].expand(n, 3).contiguous(),
        "y": torch.arange(start, start + n) % 3,
    }


# -- the surface ----------------------------------------------------------------------------------


def test_the_surface_of_the_design(device: str) -> None:
    buffer = rk.Buffer(500, policies.Reservoir(), device=device, seed=0)
    x = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, device=device)
    batch = {"x": x, "y": torch.arange(40, device=device) % 4, "logits": torch.randn(40, 10, device=device)}
    assert buffer.add(batch) == 40
    drawn = buffer.sample(32)
    assert drawn.keys() == batch.keys() and drawn["x"].shape == (32, 3, 8, 8) and drawn["x"].dtype == torch.uint8
    assert all(column.device.type == device for column in drawn.values()) and buffer.device.type == device
    assert buffer.sample(8, retrieval.ClassBalanced())["y"].shape == (8,)
    assert len(buffer) == 40 == buffer.seen and buffer.capacity == 500
    assert torch.equal(buffer["y"], batch["y"])
    buffer.resize(20)
    assert len(buffer) == 20 == buffer.capacity
    state = buffer.state_dict()
    again = rk.Buffer(20, policies.Reservoir(), device=device)
    again.load_state_dict(state)
    assert same(again.state_dict(), state)
    columns, where = "['x', 'y', 'logits']", f"{buffer.nbytes:,} bytes on {buffer.device}"
    assert repr(buffer) == f"Buffer(20 of 20 rows, Reservoir, seen 40, columns {columns}, {where})"


def test_the_docstring_example() -> None:
    memory = Buffer(500, policies.Reservoir(), seed=0)
    assert memory.add({"x": torch.zeros(10, 3, 32, 32, dtype=torch.uint8), "y": torch.arange(10)}) == 10
    assert memory.sample(4)["x"].shape == torch.Size([4, 3, 32, 32])


def test_the_default_retrieval_is_a_choice() -> None:
    class First:
        def rows(self, store: Store, n: int, rng: np.random.Generator) -> np.ndarray:
            return store.filled[:n]

    buffer = Buffer(5, Reservoir(), First())
    buffer.add(rows(5))
    assert buffer.sample(2)["id"].tolist() == [0, 1]
    assert buffer.draw(3).tolist() == [0, 1, 2]
    assert set(buffer.sample(5, retrieval.Uniform())["id"].tolist()) == set(range(5))


def test_reading_given_slots() -> None:
    buffer = Buffer(5, Reservoir())
    buffer.add(rows(4))
    assert buffer.read(np.array([2, 0]), ["y"])["y"].tolist() == [2, 0]
    with pytest.raises(KeyError, match="no column 'z'"):
        buffer["z"]


# -- batches of all sizes -------------------------------------------------------------------------


def test_empty_batches() -> None:
    buffer = Buffer(3, Reservoir())
    assert buffer.add(rows(0)) == 0 and not buffer.store.columns and buffer.seen == 0
    buffer.add(rows(2))
    before = buffer.state_dict()
    assert buffer.add(rows(0)) == 0 and same(buffer.state_dict(), before)
    with pytest.raises(ValueError, match="at least one column, got none"):
        buffer.add({})
    with pytest.raises(ValueError, match="at least one column, got none"):
        Buffer(3, Reservoir()).add({})


def test_a_batch_larger_than_the_memory() -> None:
    buffer = Buffer(3, Reservoir())
    assert buffer.add(rows(50)) == 3 and len(buffer) == 3 and buffer.seen == 50
    assert torch.equal(buffer["x"][:, 0].long(), buffer["id"])


def test_a_memory_of_one_row() -> None:
    buffer = Buffer(1, Reservoir())
    for start in range(0, 30, 3):
        buffer.add(rows(3, start))
    assert len(buffer) == 1 and len(buffer.sample(5)["id"]) == 1


def test_sampling_from_an_empty_memory() -> None:
    buffer = Buffer(3, Reservoir())
    with pytest.raises(ValueError, match="memory is empty: add a batch"):
        buffer.sample(2)
    buffer.add(rows(3))
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1 row, got {n}"):
            buffer.sample(n)
    buffer.clear()
    with pytest.raises(ValueError, match="memory is empty"):
        buffer.sample(2)


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["logits", "weight", "anything"])
def test_values_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype, name: str) -> None:
    buffer = Buffer(6, Reservoir())
    good = {**rows(4), name: torch.ones(4, 5, dtype=dtype)}
    wrong = {**good, name: good[name].clone()}
    wrong[name][3, 2] = bad
    cure = r" \(a network that diverges gives them: lower the learning rate\)" if name == "logits" else ""
    with pytest.raises(ValueError, match=f"column '{name}' holds NaN or infinity; nothing was stored{cure}$"):
        buffer.add(wrong)
    assert len(buffer) == 0
    buffer.add(good)  # from here on the fast way in
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="NaN or infinity"):
        buffer.add(wrong)
    assert same(buffer.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_numbers_of_8_bits_are_looked_at_too(dtype: torch.dtype) -> None:
    buffer = Buffer(6, Reservoir())
    assert buffer.add({"logits": torch.ones(2, 4).to(dtype)}) == 2
    with pytest.raises(ValueError, match="column 'logits' holds NaN or infinity"):
        buffer.add({"logits": torch.full((2, 4), math.nan).to(dtype)})
    assert buffer.sample(2)["logits"].float().tolist() == [[1.0] * 4] * 2


@pytest.mark.filterwarnings("error")
def test_large_values_and_inputs_are_not_taken_for_infinity() -> None:
    buffer = Buffer(6, Reservoir())
    for _ in range(2):
        buffer.add({"x": torch.full((2, 2), math.nan), "logits": torch.full((2, 4), 3e38)})
    assert buffer["logits"].isfinite().all() and buffer["x"].isnan().all()


def test_the_check_of_values_can_be_switched() -> None:
    Buffer(6, Reservoir(), check_finite=False).add({"logits": torch.full((2, 4), math.nan)})
    with pytest.raises(ValueError, match="NaN"):
        Buffer(6, Reservoir(), check_finite=True).add({"logits": torch.full((2, 4), math.nan)})


def test_logits_that_carry_gradients_are_stored_without() -> None:
    buffer = Buffer(6, Reservoir())
    for _ in range(2):
        z = torch.ones(2, 4, requires_grad=True)
        buffer.add({"logits": z * 2})
        assert z.grad is None
    assert not buffer["logits"].requires_grad


# -- errors ---------------------------------------------------------------------------------------


class Broken(Policy):
    def __init__(self, plan: Callable[[], Plan]) -> None:
        self.make = plan

    def plan(self, arrivals: Batch, store: Store, rng: np.random.Generator, probe: object = None) -> Plan:
        return self.make()


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    "plan", [Plan(array(0, 1), array(2, 2)), Plan(array(0), array(9)), Plan(array(0), array(-1))]
)
def test_plans_that_cannot_be_carried_out_are_noticed(plan: Plan) -> None:
    buffer = Buffer(3, Broken(lambda: plan))
    with pytest.raises(ValueError, match=r"distinct and in \[0, 3\)"):
        buffer.add(rows(2))
    assert len(buffer) == 0 and buffer.seen == 0


def test_errors_of_a_policy_name_it_and_the_batch() -> None:
    def picky(arrivals: Batch, store: Store, rng: np.random.Generator) -> Plan:
        raise ValueError("not today")

    with pytest.raises(ValueError, match=r"picky: not today \[batch {id \[2\] int64, x \[2, 3\] float32, y"):
        Buffer(3, picky).add(rows(2))
    with pytest.raises(ValueError, match="RingBuffer: needs a label column 'y', the batch has"):
        Buffer(3, RingBuffer()).add({"x": torch.zeros(2)})


def test_a_policy_that_needs_a_probe_asks_for_it() -> None:
    policy = Broken(Plan)
    policy.needs = ("gradients", "losses")
    with pytest.raises(ValueError, match=r"Broken needs gradients, losses of a probe; pass add\(batch, probe="):
        Buffer(3, policy).add(rows(2))


def test_releases_and_revisions_of_a_plan() -> None:
    plans = iter(
        [
            Plan(array(0, 1, 2), array(0, 1, 2), {"score": torch.zeros(3)}),
            Plan(array(1), array(3), {"score": torch.ones(1)}, release=array(0, 2)),
            Plan(release=array(3), revise=(array(1), {"score": torch.tensor([7.0])})),
        ]
    )
    buffer = Buffer(4, Broken(lambda: next(plans)))
    assert [buffer.add(rows(3, start)) for start in (0, 3, 6)] == [3, 1, 0]
    assert buffer["id"].tolist() == [1] and buffer["score"].tolist() == [7.0] and buffer.seen == 9


# -- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "kind"), [(0, ValueError), (-2, ValueError), (2.5, TypeError)])
def test_capacities_that_are_none(capacity: int, kind: type[Exception]) -> None:
    buffer = Buffer(4, RandomKeyReservoir())
    buffer.add(rows(9))
    before = buffer.state_dict()
    with pytest.raises(kind):
        buffer.resize(capacity)
    assert same(buffer.state_dict(), before)


def test_a_policy_without_a_law_for_it_does_not_resize() -> None:
    buffer = Buffer(4, Broken(Plan))
    with pytest.raises(ValueError, match="Broken cannot change its capacity; build a new memory"):
        buffer.resize(2)


# -- bytes ----------------------------------------------------------------------------------------


def test_bytes_are_the_columns_and_do_not_grow_with_the_stream() -> None:
    buffer = Buffer(100, Reservoir())
    stream = example_stream(300)
    buffer.add(stream)
    row = sum(column[0].numel() * column.element_size() for column in stream.values())
    assert buffer.nbytes == 100 * (row + 2 * 8)
    for _ in range(50):
        buffer.add(stream)
    assert buffer.nbytes == 100 * (row + 2 * 8)


# -- generators -----------------------------------------------------------------------------------


def test_what_is_kept_does_not_depend_on_sampling() -> None:
    quiet, busy = Buffer(5, Reservoir(), seed=4), Buffer(5, Reservoir(), seed=4)
    for start in range(0, 60, 4):
        quiet.add(rows(4, start))
        busy.add(rows(4, start))
        busy.sample(3)
    assert same(quiet.state_dict()["store"], busy.state_dict()["store"])


def test_a_generator_may_be_the_seed() -> None:
    ends = []
    for _ in range(2):
        buffer = Buffer(5, Reservoir(), seed=np.random.default_rng(11))
        buffer.add(rows(50))
        ends.append((buffer["id"].tolist(), buffer.sample(3)["id"].tolist()))
    assert ends[0] == ends[1]
    assert len({tuple(Buffer(5, Reservoir(), seed=seed).draws.random(3).tolist()) for seed in range(5)}) == 5


def test_only_generators_that_can_be_saved_are_saved() -> None:
    buffer = Buffer(5, Reservoir(), seed=np.random.Generator(np.random.MT19937(0)))
    with pytest.raises(ValueError, match="only PCG64 generators can be saved, this buffer was given MT19937"):
        buffer.state_dict()


# -- saving ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 59), capacity=st.integers(1, 30), seed=st.integers(0, 5))
def test_a_run_cut_anywhere_ends_in_the_same_bits(cut: int, capacity: int, seed: int) -> None:
    ends = []
    for stops in (False, True):
        buffer = Buffer(capacity, Reservoir(), seed=seed)
        drawn = []
        for start in range(0, 60, 3):
            if stops and start == cut // 3 * 3:
                state = reloaded(buffer.state_dict())
                buffer = Buffer(capacity, Reservoir(), seed=99)
                buffer.load_state_dict(state)
            buffer.add(rows(3, start))
            drawn.append(buffer.sample(4)["id"].tolist())
        ends.append((drawn, buffer.state_dict()))
    assert ends[0][0] == ends[1][0] and same(ends[0][1], ends[1][1])


def test_a_memory_can_move_to_a_folder_and_back(tmp_path: Path) -> None:
    host, mapped = Buffer(8, Reservoir(), seed=0), Buffer(8, Reservoir(), seed=1, folder=tmp_path)
    host.add(rows(20))
    mapped.load_state_dict(reloaded(host.state_dict()))
    for buffer in (host, mapped):
        buffer.add(rows(20, 20))
    host.load_state_dict(reloaded(mapped.state_dict()))
    assert same(host.state_dict(), mapped.state_dict()) and (tmp_path / "x.npy").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_a_memory_can_move_between_devices() -> None:
    host, device = Buffer(8, RandomKeyReservoir(), seed=0), Buffer(8, RandomKeyReservoir(), device="cuda")
    host.add(rows(20))
    device.load_state_dict(reloaded(host.state_dict()))
    for buffer in (host, device):
        buffer.add(rows(20, 20))
    assert same(host.state_dict(), device.state_dict())
    host.load_state_dict(device.state_dict())
    assert same(host.state_dict(), device.state_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"policy": "RingBuffer"}, "kept by RingBuffer, this one by Reservoir"),
        ({"policy_state": {"pointer": 3}}, "not the state of a Reservoir"),
        ({"rng": {"state": "0x1"}}, "corrupt generator state"),
        ({"rng": 5}, "corrupt generator state"),
        ({"draws": {"state": "one", "inc": "0x1", "has_uint32": 0, "uinteger": 0}}, "corrupt generator state"),
        ({"store": {}}, "not the state of a store"),
        ({"store": None}, "not the state of a store: a NoneType"),
    ],
)
def test_states_that_are_not_ours(spoil: dict[str, object], message: str) -> None:
    source = Buffer(4, Reservoir())
    source.add(rows(9))
    buffer = Buffer(4, Reservoir(), seed=5)
    buffer.add(rows(3))
    before = buffer.state_dict()
    state = source.state_dict()
    with pytest.raises(ValueError, match=message):
        buffer.load_state_dict({**state, **spoil})
    for missing in state:
        with pytest.raises(ValueError, match=rf"it lacks \['{missing}'\]"):
            buffer.load_state_dict({name: value for name, value in state.items() if name != missing})
    with pytest.raises(ValueError, match="not the state of a buffer: a str"):
        buffer.load_state_dict("runs/1")  # type: ignore[arg-type]
    assert same(buffer.state_dict(), before)


def test_a_state_of_another_capacity_leaves_policy_and_memory_alone() -> None:
    source, buffer = Buffer(6, RingBuffer()), Buffer(4, RingBuffer())
    source.add(rows(20))
    buffer.add(rows(5))
    before = buffer.state_dict()
    with pytest.raises(ValueError, match="has 6 slots, this one 4; make one of that size"):
        buffer.load_state_dict(source.state_dict())
    assert same(buffer.state_dict(), before)
    buffer.add(rows(5, 5))


def test_a_file_that_would_execute_code_does_not_load() -> None:
    class Sneaky:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (print, ("executed",))

    state = Buffer(4, Reservoir()).state_dict()
    file = io.BytesIO()
    torch.save({**state, "policy_state": Sneaky()}, file)
    file.seek(0)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file, weights_only=True)


def test_buffers_can_be_copied() -> None:
    buffer = Buffer(4, RandomKeyReservoir(), seed=3)
    buffer.add(rows(9))
    twin = copy.deepcopy(buffer)
    for memory in (buffer, twin):
        memory.add(rows(30, 9))
    assert same(buffer.state_dict(), twin.state_dict())
    twin.clear()
    assert len(buffer) == 4


# -- widths and devices through the buffer --------------------------------------------------------


def test_logits_of_a_head_that_grows() -> None:
    buffer = Buffer(10, Reservoir())
    buffer.add({"y": torch.arange(3)})
    for width in (2, 4):
        buffer.add({"y": torch.arange(3), "logits": torch.full((3, width), float(width))})
    batch = buffer.read(buffer.store.filled)
    assert batch["logits"].shape == (9, 4) and batch["logits_width"].tolist() == [0] * 3 + [2] * 3 + [4] * 3
    resumed = Buffer(10, Reservoir())
    resumed.load_state_dict(reloaded(buffer.state_dict()))
    assert same(resumed.read(resumed.store.filled), batch)
    with pytest.raises(ValueError, match=r"the batch lacks \['logits'\]"):
        buffer.add({"y": torch.arange(3)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("policy", [Reservoir, RandomKeyReservoir, RingBuffer])
def test_batches_from_any_device_end_in_the_same_memory(policy: type[Policy]) -> None:
    ends = []
    for on in ("cpu", "cuda"):
        for batches_on in ("cpu", "cuda"):
            buffer = Buffer(7, policy(), device=on, seed=0)
            for start in range(0, 40, 5):
                buffer.add({name: column.to(batches_on) for name, column in rows(5, start).items()})
            ends.append(buffer.state_dict())
    assert all(same(end, ends[0]) for end in ends)
