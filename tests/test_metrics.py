import numpy as np
import pytest
import torch
from torch import nn

from replaykit import Buffer, metrics, policies

NAN = float("nan")
# Task 0 peaks after task 1, dips after task 2 and recovers; the upper triangle was never measured.
MATRIX = [[0.8, NAN, NAN, NAN], [0.9, 0.7, NAN, NAN], [0.4, 0.5, 0.6, NAN], [0.6, 0.3, 0.8, 1.0]]


def test_average_accuracy_by_task_and_by_sample():
    assert metrics.average_accuracy(MATRIX) == pytest.approx((0.6 + 0.3 + 0.8 + 1.0) / 4)
    # 10, 10, 10 and 70 test rows: 6 + 3 + 8 + 70 hits of 100.
    assert metrics.average_accuracy(MATRIX, [10, 10, 10, 70]) == pytest.approx(0.87)


def test_forgetting_best_and_first():
    # Best since learned: 0.9, 0.7, 0.6; final 0.6, 0.3, 0.8.
    assert metrics.forgetting(MATRIX) == pytest.approx((0.3 + 0.4 - 0.2) / 3)
    # First: 0.8, 0.7, 0.6.
    assert metrics.forgetting(MATRIX, first=True) == pytest.approx((0.2 + 0.4 - 0.2) / 3)


def test_the_final_row_is_not_its_own_best():
    assert metrics.forgetting([[0.5, 0.0], [0.9, 1.0]]) == pytest.approx(-0.4)


def test_accuracy_before_learning_is_not_a_best():
    # Task 1 scores 0.9 before it is learned and 0.2 after: nothing was learned, nothing forgotten.
    assert metrics.forgetting([[1.0, 0.9, 0.0], [1.0, 0.2, 0.0], [1.0, 0.2, 1.0]]) == 0.0


def test_backward_transfer_is_minus_first_forgetting():
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-0.2 - 0.4 + 0.2) / 3)
    rng = np.random.default_rng(0)
    for tasks in (2, 3, 7):
        matrix = rng.random((tasks, tasks))
        assert metrics.backward_transfer(matrix) == pytest.approx(-metrics.forgetting(matrix, first=True))


def test_a_single_task_forgets_nothing():
    assert metrics.forgetting([[0.7]]) == metrics.backward_transfer([[0.7]]) == 0.0
    assert metrics.worst_case_accuracy([[0.7]]) == metrics.average_anytime_accuracy([[0.7]]) == 0.7


def test_anytime_accuracy_of_the_matrix():
    rows = [0.8, (0.9 + 0.7) / 2, (0.4 + 0.5 + 0.6) / 3, 2.7 / 4]
    assert metrics.average_anytime_accuracy(MATRIX) == pytest.approx(np.mean(rows))


def test_anytime_accuracy_with_evaluations_in_mid_task():
    record, current = [[0.2, NAN], [0.6, NAN], [0.4, 0.2], [0.6, 0.8]], [0, 0, 1, 1]
    assert metrics.average_anytime_accuracy(record, current) == pytest.approx((0.2 + 0.6 + 0.3 + 0.7) / 4)


def test_worst_case_accuracy_of_the_matrix():
    # Minima after the task ended: task 0 0.4, task 1 0.3, task 2 0.8; current task 1.0, k = 4.
    assert metrics.worst_case_accuracy(MATRIX) == pytest.approx(1.0 / 4 + 3 / 4 * (0.4 + 0.3 + 0.8) / 3)


def test_worst_case_accuracy_sees_the_gap_between_task_ends():
    record = [[0.1, NAN], [0.9, NAN], [0.2, 0.3], [0.8, 0.9]]
    # The 0.1 belongs to task 0's own training; the dip to 0.2 is after its end.
    assert metrics.worst_case_accuracy(record, [0, 0, 1, 1]) == pytest.approx(0.9 / 2 + 0.2 / 2)
    assert metrics.worst_case_accuracy([record[1], record[3]]) == pytest.approx(0.9 / 2 + 0.8 / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.average_accuracy([0.5, 0.5]), "table"),
        (lambda: metrics.average_accuracy([[50.0]]), r"\[0, 1\]"),
        (lambda: metrics.average_accuracy([[0.5, NAN]]), "never measured"),
        (lambda: metrics.average_accuracy([[0.5, 0.5]], [3]), "one a task"),
        (lambda: metrics.forgetting([[0.5, 0.5]]), "one row a task"),
        (lambda: metrics.worst_case_accuracy([[0.5], [0.5]], [1, 0]), "non-decreasing"),
        (lambda: metrics.average_anytime_accuracy([[0.5], [0.5]]), "below 1"),
    ],
)
def test_bad_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Signs(nn.Module):
    """Class 1 for positive inputs; counts the rows of each call and must be in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.drop = nn.Dropout(0.9)
        self.calls: list[int] = []

    def forward(self, x):
        assert not self.training and not self.drop.training and not torch.is_grad_enabled()
        self.calls.append(len(x))
        return torch.cat([-x, x], 1) + 0 * self.norm(x)


def test_accuracy_chunks_and_leaves_the_model_as_it_was():
    model = Signs().train()
    model.drop.eval()
    x, y = torch.tensor([[1.0], [2.0], [-1.0], [-3.0], [5.0]]), torch.tensor([1, 0, 0, 0, 0])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert metrics.accuracy(model, x, y, batch_size=2) == 3 / 5
    assert model.calls == [2, 2, 1]
    assert metrics.accuracy(model, x, y, view=lambda x: -x) == 2 / 5
    assert model.training and model.norm.training and not model.drop.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="no rows"):
        metrics.accuracy(model, x[:0], y[:0])


def test_memory_report_counts_what_is_stored():
    memory = Buffer(6, policies.Reservoir())
    assert metrics.memory_report(memory) == {"rows": 0, "capacity": 6, "seen": 0, "bytes": memory.nbytes}
    memory.add({"x": torch.zeros(5, 2), "y": torch.tensor([3, 3, 1, 3, 7]), "id": torch.arange(5)})
    memory.add({"x": torch.zeros(1, 2), "y": torch.tensor([7]), "id": torch.tensor([5])})
    report = metrics.memory_report(memory)
    assert report["classes"] == {1: 1, 3: 3, 7: 2} and report["rows"] == report["seen"] == 6
    assert report["age"] == {"mean": 2.5, "least": 0, "greatest": 5}
    assert "tasks" not in report and report["bytes"] == memory.nbytes


def test_memory_report_of_multi_hot_labels():
    memory = Buffer(4, policies.Reservoir())
    memory.add({"y": torch.tensor([[1, 1, 0], [0, 1, 0]]), "t": torch.tensor([0, 2])})
    report = metrics.memory_report(memory)
    assert report["classes"] == {0: 1, 1: 2} and report["tasks"] == {0: 1, 2: 1}
