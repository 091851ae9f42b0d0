"""One run: train task by task, evaluate, log, checkpoint, resume."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoint
import plots
import torch
from avalanche.training.plugins import SupervisedPlugin
from config import Config, differences
from stopwatch import Stopwatch
from tables import (
    make_buffer,
    make_model,
    make_reptile,
    make_strategy,
    make_stream,
    refuse_unused,
    uses_memory,
)
from torch import Tensor

import replaykit
from replaykit import metrics
from replaykit.augment import Views, views
from replaykit.avalanche.dataset import column_names
from replaykit.benchmarks import Stream
from replaykit.loader import ShuffledLoader
from replaykit.loggers import Console, Counts, Images, JsonLines, Logger, Matrix, Value, WandB


class Experiment:
    """What a configuration asks for. The folder of the run appears when everything could be built."""

    def __init__(self, config: Config) -> None:
        refuse_unused(config)
        self.config = config.completed()
        torch.set_num_threads(self.config.threads)
        torch.manual_seed(self.config.seed)
        self.stream = make_stream(self.config)
        self.views = make_views(self.config, self.stream)
        self.model = make_model(self.config, self.stream)
        self.buffer = make_buffer(self.config, self.stream)
        self.progress = Progress(self)
        self.reptile = make_reptile(self.config)
        plugins = [self.progress, *([] if self.reptile is None else [self.reptile])]
        self.strategy = make_strategy(self.config, self.stream, self.model, self.buffer, self.views, plugins)
        self.folder = Path(self.config.out) / self.config.run_name
        self.task = self.iteration = self.samples = 0
        self.seconds = 0.0
        self.selection = Stopwatch(self.buffer, "add", "draw")
        self.records: list[dict[str, Any]] = []  # one an evaluation
        self.held: list[dict[int, int]] = []  # classes in the memory after each task
        self.saved: dict[str, Any] | None = None
        if self.config.resume:
            self._restore()

    # -- the run ------------------------------------------------------------------------------------

    def run(self) -> None:
        if self.saved is not None and self.saved.get("finished"):
            raise ValueError(f"the run in {self.folder} is finished; start another with --name")
        self._refuse_to_replace()
        self.folder.mkdir(parents=True, exist_ok=True)
        with checkpoint.alone(self.folder):
            self._run()

    def _run(self) -> None:
        checkpoint.write_json(self.folder / "config.json", asdict(self.config))
        self.console = Console(total=self._total_samples(), done=self.samples)
        self.loggers: list[Logger] = [self.console]
        try:
            self._open_loggers()
            experiences = list(self.stream.train_stream)
            while self.task < self._training_tasks():
                self.console.describe(f"task {self.task + 1} of {self._training_tasks()}")
                self.strategy.train(experiences[self.task], eval_streams=[])
                self._end_task()
                self.task += 1
                self.save()
            self._finish()
        finally:
            for logger in self.loggers:
                logger.close()

    def _refuse_to_replace(self) -> None:
        """A fresh start must not throw away a run that can go on."""
        path = self.folder / "checkpoint.pt"
        if self.config.resume or self.config.replace or not path.exists():
            return
        if not checkpoint.load(path).get("finished"):
            raise ValueError(
                f"{self.folder} holds a run that was cut; go on with --resume, start over with --replace, or give "
                "another --name"
            )

    def _open_loggers(self) -> None:
        resumed = self.iteration if self.config.resume else None
        self.loggers.append(JsonLines(self.folder / "metrics.jsonl", resume=resumed))
        if self.config.logger == "wandb":
            config = self.config
            self.loggers.append(
                WandB(
                    self.folder, config.project, config.run_name, asdict(config), config.wandb_mode, config.resume
                )
            )

    def columns(self) -> dict[str, Tensor]:
        """The training rows of the present task: x, y, t (Avalanche's task label) and columns of the data."""
        tasks = range(len(self.stream)) if self.config.strategy == "joint" else [self.task]
        parts: dict[str, list[Tensor]] = {}
        for task in tasks:
            x, y = self.stream.tensors(task)
            rows = torch.from_numpy(self.stream.rows(task))
            further = {name: column[rows] for name, column in self.stream.data.columns.items()}
            t = torch.full_like(y, task if self.stream.task_labels else 0)
            for name, column in {"x": x, "y": y, "t": t, **further}.items():
                parts.setdefault(name, []).append(column)
        return {name: held[0] if len(held) == 1 else torch.cat(held) for name, held in parts.items()}

    def _training_tasks(self) -> int:
        return 1 if self.config.strategy == "joint" else len(self.stream)

    def _total_samples(self) -> int:
        return self.config.epochs * sum(map(len, self.stream.train))

    def _end_task(self) -> None:
        self.console.advance(0)  # what a memory did at the end of the task is training
        self.held.append(metrics.memory_report(self.buffer).get("classes", {}))
        if self.config.evaluate == "task" or self.task + 1 == self._training_tasks():
            self.evaluate(end_of_task=True)

    # -- evaluation ---------------------------------------------------------------------------------

    def evaluate(self, end_of_task: bool) -> None:
        """Accuracy on the test rows of every task, what is in the memory, and a line in every log."""
        classifier = self.strategy.classifier()
        row = [
            metrics.accuracy(
                classifier, *self.stream.tensors(task, "test"), self.views.eval, 500, self.config.device
            )
            for task in range(len(self.stream.test))
        ]
        held = metrics.memory_report(self.buffer)
        self.records.append({"step": self.iteration, "task": self.task, "end": end_of_task, "row": row})
        seen = row[: self.stream.current[self.task] + 1] if self.config.strategy != "joint" else row
        values: dict[str, Value] = {"task": self.task + 1, "average_accuracy": sum(seen) / len(seen)}
        if end_of_task:
            values["accuracy"] = Matrix(self.matrix())
        if uses_memory(self.config) and "classes" in held:
            values |= {"memory/rows": held["rows"], "memory/seen": held["seen"], "memory/bytes": held["bytes"]}
            values["memory/classes"] = Counts(held["classes"])
            if end_of_task and (images := self._images()) is not None:
                values["memory/images"] = images
        for logger in self.loggers:
            logger.log(self.iteration, values)
        self.console.start()

    def matrix(self) -> list[list[float]]:
        """a[t, i]: accuracy on test task i after training task t, a row for each that was evaluated."""
        return [record["row"] for record in self.records if record["end"]]

    def _images(self) -> Images | None:
        """Sixteen rows of the memory, the same places each time; no draw is spent on them."""
        slots = self.buffer.store.filled[:: max(1, len(self.buffer) // 16)][:16]
        rows = self.buffer.read(slots, ["x", "y"])
        if rows["x"].dtype != torch.uint8 or rows["x"].ndim != 4 or rows["x"].shape[1] not in (1, 3):
            return None
        return Images(rows["x"].cpu(), [str(int(label)) for label in rows["y"]])

    # -- the end ------------------------------------------------------------------------------------

    def _finish(self) -> None:
        matrix, name = self.matrix(), self.config.run_name
        summary = summarise(self.records, self.stream)
        seconds = self.seconds + self.console.seconds
        result = {
            **summary,
            "accuracy_matrix": matrix,
            "seconds": seconds,
            "selection_seconds": self.selection.seconds,
            "samples_per_second": self.samples / seconds,
            "memory_bytes": self.buffer.nbytes if uses_memory(self.config) else 0,
            "parameters_sha256": checkpoint.digest(self.model.state_dict()),
            "memory_sha256": checkpoint.digest({name: self.buffer[name] for name in self.buffer.store.columns}),
            "config": asdict(self.config),
            "versions": versions(),
        }
        checkpoint.write_json(self.folder / "result.json", result)
        after = [record["task"] + 1 for record in self.records if record["end"]]
        plots.accuracy_matrix(self.folder / "accuracy_matrix.png", matrix, name, after)
        pictures = "accuracy_matrix.png"
        if uses_memory(self.config):
            plots.memory_classes(self.folder / "memory_classes.png", self.held, self.stream.classes, name)
            pictures += " and memory_classes.png"
        for logger in self.loggers:
            logger.summary({**summary, "seconds": seconds})
        self.save(finished=True)
        self.console.say(f"{pictures} and result.json are in {self.folder}")

    # -- checkpoints --------------------------------------------------------------------------------

    def save(self, finished: bool = False) -> None:
        if not self.config.checkpoint_every:
            return
        state = {
            "config": asdict(self.config),
            "task": self.task,
            "position": self.progress.position(),
            "iteration": self.iteration,
            "samples": self.samples,
            "seconds": self.seconds + self.console.seconds,
            "selection_seconds": self.selection.seconds,
            "records": self.records,
            "held": self.held,
            "model": self.model.state_dict(),
            "optimizer": self.strategy.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "reptile": None if self.reptile is None else self.reptile.state_dict(),
            "buffer": self.buffer.state_dict(),
            "generators": checkpoint.generators(),
            "finished": finished,
        }
        checkpoint.save(self.folder / "checkpoint.pt", state)

    def _restore(self) -> None:
        path = self.folder / "checkpoint.pt"
        self.saved = saved = checkpoint.load(path)
        if different := differences(self.config, saved["config"]):
            raise ValueError(f"{path} is of another run; " + "; ".join(different))
        self.model.load_state_dict(saved["model"])
        self.buffer.load_state_dict(saved["buffer"])
        self.strategy.load_state_dict(saved["strategy"])
        if self.reptile is not None:
            self.reptile.load_state_dict(saved["reptile"])
        self.task, self.iteration, self.samples = saved["task"], saved["iteration"], saved["samples"]
        self.seconds, self.records, self.held = saved["seconds"], saved["records"], saved["held"]
        self.selection.seconds = saved.get("selection_seconds", 0.0)


class Progress(SupervisedPlugin):
    """Feeds a task in an order that depends on seed, task and epoch alone, and can start in its middle."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment
        self.loader: ShuffledLoader | None = None

    def position(self) -> list[int]:
        """Epoch and batch to go on from: the start of the next task when none is in training."""
        return [0, 0] if self.loader is None else [self.loader.epoch, self.loader.batch]

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        run, config = self.experiment, self.experiment.config
        saved, run.saved = run.saved, None
        epoch, batch = saved["position"] if saved is not None else (0, 0)
        seed = 1_000_003 * config.seed + run.task
        columns = run.columns()
        ordered = [columns[name] for name in column_names(strategy.adapted_dataset, len(columns))]
        self.loader = ShuffledLoader(ordered, config.train_mb_size, seed, start_epoch=epoch, start_batch=batch)
        strategy.dataloader = self.loader
        strategy.train_epochs = config.epochs - epoch
        if saved is not None:
            if not (config.fresh_optimizer and saved["position"] == [0, 0]):
                strategy.optimizer.load_state_dict(saved["optimizer"])
            checkpoint.set_generators(saved["generators"])
        run.console.start()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        run, config = self.experiment, self.experiment.config
        rows = (
            int(len(strategy.mb_y) - strategy.from_memory.sum())
            if hasattr(strategy, "from_memory")
            else len(strategy.mb_y)
        )
        run.iteration += 1
        run.samples += rows
        run.console.advance(rows)
        if self._is_last():
            return  # the end of the task evaluates and saves
        if config.eval_every and run.iteration % config.eval_every == 0:
            run.evaluate(end_of_task=False)
        if config.checkpoint_every and run.iteration % config.checkpoint_every == 0:
            run.save()

    def _is_last(self) -> bool:
        epoch, batch = self.position()
        last = self.experiment.config.epochs - 1
        return self.loader is not None and epoch == last and batch == len(self.loader)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.loader = None


def make_views(config: Config, stream: Stream) -> Views:
    data = stream.data
    if len(data.shape) != 3:
        if config.augment:
            raise ValueError(f"--augment is for images; the rows of {stream.name} have shape {list(data.shape)}")
        if data.are_ids:
            if config.normalise:
                raise ValueError(f"--normalise is for numbers; the rows of {stream.name} are token ids")
            return Views(_as_stored, _as_stored)
    return views(
        mean=data.mean if config.normalise else None,
        std=data.std if config.normalise else None,
        crop=max(1, min(data.shape[1:]) // 8) if config.augment else None,
        flip=config.augment,
    )


def _as_stored(x: Tensor) -> Tensor:
    return x


def summarise(records: list[dict[str, Any]], stream: Stream) -> dict[str, float]:
    """All metrics that the evaluations allow; forgetting is best-so-far minus final, see `replaykit.metrics`."""
    matrix = [record["row"] for record in records if record["end"]]
    summary = {
        "average_accuracy": metrics.average_accuracy(matrix),
        "sample_accuracy": metrics.average_accuracy(matrix, [len(rows) for rows in stream.test]),
    }
    if len(matrix) == len(stream):  # evaluated after every task
        if stream.paired:
            summary["forgetting"] = metrics.forgetting(matrix)
            summary["backward_transfer"] = metrics.backward_transfer(matrix)
        every, current = [record["row"] for record in records], [stream.current[r["task"]] for r in records]
        summary["average_anytime_accuracy"] = metrics.average_anytime_accuracy(every, current)
        summary["worst_case_accuracy"] = metrics.worst_case_accuracy(every, current)
    return summary


def versions() -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "numpy", "avalanche-lib")}
    found |= {"replaykit": replaykit.__version__, "python": platform.python_version()}
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        found["commit"] = subprocess.run(git, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return found
