"""Weights & Biases: the same values on one step axis, with images and histograms."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from replaykit.loggers.values import Counts, Images, Matrix, Value

_ID = "wandb_id.txt"


class WandB:
    """Logs to one W&B run, which a resumed process continues.

    Every value goes with ``step``, the training iteration, as its axis. Class counts become a histogram over
    time (its bins are the labels), a matrix becomes a table and a heat map, images keep their captions. The
    run's id is kept in ``wandb_id.txt`` of the folder. Offline runs lie in ``wandb/`` of the folder, one part
    a process; `wandb sync` sends them, the parts of a resumed run in their order.

    Args:
        folder: the run's folder; it exists.
        project, name: where the run appears, and as what.
        config: what the run was configured with.
        mode: "online" needs a login; "offline" needs no network; "disabled" does nothing.
        resume: continue the run whose id the folder holds, when it holds one.

    Raises:
        RuntimeError: W&B could not start, for want of a login or a network.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        project: str,
        name: str,
        config: Mapping[str, Any],
        mode: Literal["online", "offline", "disabled"] = "online",
        resume: bool = False,
    ) -> None:
        import wandb

        self._wandb = wandb
        file = Path(folder) / _ID
        known = resume and file.exists()
        self.id = file.read_text().strip() if known else secrets.token_hex(4)
        settings: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "init_timeout": 30}
        if "x_transaction_log_flush_interval" in getattr(wandb.Settings, "model_fields", ()):
            # By default a killed run loses what it logged in its last 15 seconds.
            settings["x_transaction_log_flush_interval"] = 0.2
        try:
            self.run = wandb.init(
                project=project,
                name=name,
                id=self.id,
                # Offline nothing can be asked about an older part, and W&B warns when told to.
                resume="allow" if known and mode == "online" else None,
                config=dict(config),
                mode=mode,
                dir=str(folder),
                settings=wandb.Settings(**settings),
            )
        except wandb.Error as error:
            raise RuntimeError(
                f"Weights & Biases did not start: {error} Run `wandb login` (online mode needs an account "
                "and a network), or choose offline mode and send the run later with `wandb sync`."
            ) from error
        file.write_text(self.id + "\n")
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        record: dict[str, Any] = {"step": step}
        for name, value in values.items():
            if isinstance(value, Matrix):
                record[name] = self._table(value)
                record[f"{name}_map"] = self._wandb.Image(_heat_map(value), caption=f"step {step}")
            elif isinstance(value, Counts):
                record[name] = self._histogram(value)
            elif isinstance(value, Images):
                pixels = value.pixels.cpu().permute(0, 2, 3, 1).numpy()
                pictures = zip(pixels, value.captions, strict=True)
                record[name] = [self._wandb.Image(picture, caption=text) for picture, text in pictures]
            else:
                record[name] = value
        self.run.log(record)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def close(self) -> None:
        self.run.finish()

    def _table(self, matrix: Matrix) -> Any:
        columns: list[str | int] = [matrix.rows]
        columns += [f"{matrix.columns} {i + 1}" for i in range(len(matrix.values[0]))]
        return self._wandb.Table(columns=columns, data=[[t + 1, *row] for t, row in enumerate(matrix.values)])

    def _histogram(self, counts: Counts) -> Any:
        top = max(counts.numbers, default=0)
        numbers = [counts.numbers.get(label, 0) for label in range(top + 1)]
        return self._wandb.Histogram(np_histogram=(np.array(numbers), np.arange(top + 2) - 0.5))


def _heat_map(matrix: Matrix) -> Any:
    """Each entry as a square of grey, black 0 and white 1, unmeasured ones dark red [height, width, 3]."""
    values = np.asarray(matrix.values, np.float64)
    cells = np.nan_to_num(values)[..., None].clip(0, 1) * np.array([255, 255, 255])
    cells[np.isnan(values)] = (96, 0, 0)
    return cells.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
