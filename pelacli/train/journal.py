"""The course of a run, written down as it trains: metrics.jsonl, and accelerate's trackers.

A line has ``step`` and ``epoch`` (a fraction), and either ``loss``, ``losses`` (by name), ``lr``,
``samples_per_s``, or ``metrics`` (an evaluation).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelacli.system import files

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pelacli.train.update import Update


class Journal:
    """metrics.jsonl, and accelerate's trackers. Losses are means over ``every`` steps.

    Attributes:
        last: the losses of the last line, and their sum as "loss".
    """

    def __init__(
        self, accelerator: Accelerator, output: Path | None, step: int, every: int
    ) -> None:
        self.last: dict[str, float] = {}
        self._accelerator, self._every = accelerator, every
        self._sums: dict[str, float] = {}
        self._steps = self._samples = 0
        self._began = time.perf_counter()
        self._speed: float | None = None  # samples per second in the last line
        self._path = output / "metrics.jsonl" if output and accelerator.is_main_process else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text().splitlines() if step and self._path.exists() else []
            kept = [line for line in lines if _step(line) <= step]
            files.write(self._path, "".join(f"{line}\n" for line in kept).encode())
        if accelerator.log_with:
            folder = accelerator.project_dir
            for_wandb = {"wandb": {"dir": folder, "name": Path(folder).name}} if folder else {}
            if folder and accelerator.is_main_process:  # W&B creates no folder
                Path(folder).mkdir(parents=True, exist_ok=True)
            accelerator.init_trackers("pela", init_kwargs=for_wandb)

    def update(self, step: int, epoch: float, update: Update, last: bool) -> None:
        """Count an update in; write a line after every ``every``-th step, and after the last."""
        self._steps += 1
        self._samples += update.samples
        for name, value in update.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self._every and not last:
            return
        means = {name: value / self._steps for name, value in self._sums.items()}
        self.last = {"loss": sum(means.values()), **means}
        self._speed = self._rate()
        line = {
            "loss": self.last["loss"],
            "losses": means,
            "lr": update.rate,
            "samples_per_s": self._speed,
        }
        self._write(step, epoch, line)
        self._sums, self._steps, self._samples = {}, 0, 0
        self._began = time.perf_counter()

    def metrics(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Write an evaluation down. Its time is left out of samples per second."""
        self._write(step, epoch, {"metrics": dict(metrics)})
        self._began, self._samples = time.perf_counter(), 0

    def fields(self, update: Update) -> dict[str, float]:
        """What a progress display says of an update."""
        parts = update.losses if len(update.losses) > 1 else {}
        speed = self._rate() if self._speed is None else self._speed
        total = sum(update.losses.values())
        return {"loss": total, **parts, "lr": update.rate, "samples/s": speed}

    def close(self) -> None:
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def _rate(self) -> float:
        return self._samples / max(time.perf_counter() - self._began, 1e-9)

    def _write(self, step: int, epoch: float, line: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **line}) + "\n")
        flat = {k: v for k, v in line.items() if not isinstance(v, dict)}
        for group in ("losses", "metrics"):
            flat |= {f"{group}/{name}": value for name, value in line.get(group, {}).items()}
        self._accelerator.log(flat, step=step)


def _step(line: str) -> float:
    """The step of a line; infinity for a line that was cut short when its run was killed."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
