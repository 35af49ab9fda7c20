"""The record of a run, in `save_ckpt`.run, and the same figures for trackers.

run.json        options, command, versions and commit
metrics.jsonl   one line for each step; a step that was validated has a second, complete line
train.log       log lines with the time
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from hmt.atomic import atomic_file, open_log
from hmt.metrics.machine import environment
from hmt.report.data import read_history
from hmt.training.options import TrainOptions

logger = logging.getLogger(__name__)

PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboardX", "tensorboard"), "trackio": ("trackio",)}
"""Packages of which any one serves a tracker."""


class Record:
    """Writes what happens in a run.

    Args:
        options: Options of the run.
        accelerator: Accelerator of the run, with its trackers.
        keep: False to write nothing.

    Attributes:
        history: Figures of each step.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, keep: bool) -> None:
        self.history: list[dict[str, Any]] = []
        self._options = options
        self._accelerator = accelerator
        self._keep = keep
        self._writes = keep and accelerator.is_main_process
        self._metrics = options.record / "metrics.jsonl"

    @contextmanager
    def open(self, steps: int) -> Iterator[None]:
        """Begin the record; of an earlier run in the same place, keep the lines up to this step."""
        if steps and self._metrics.exists():
            self.history = [entry for entry in read_history(self._metrics) if entry["step"] <= steps]
        if self._keep:
            self._start_trackers()
        if not self._writes:
            yield
            return
        with atomic_file(self._metrics) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in self.history))
        with atomic_file(self._options.record / "run.json") as unfinished:
            run = {"command": sys.argv, "options": asdict(self._options), **environment()}
            unfinished.write_text(json.dumps(run, indent=1, default=str) + "\n")
        with self._log_file():
            yield

    def add(self, **figures: Any) -> None:
        """Add a step."""
        self.history.append(figures)
        self._write(figures)
        self.track(figures, figures["step"])

    def amend(self, **figures: Any) -> None:
        """Add figures to the last step."""
        self.history[-1] |= figures
        self._write(self.history[-1])
        self.track(figures, self.history[-1]["step"])

    def track(self, figures: dict[str, Any], step: int) -> None:
        """Send figures to the trackers, with a perplexity beside each loss."""
        if not self._keep:
            return
        sent: dict[str, float] = {}
        for name, value in figures.items():
            if isinstance(value, dict):
                sent |= {f"{name}/{part}": number for part, number in value.items()}
            elif isinstance(value, int | float) and name != "step":
                sent[name] = value
            if name.endswith("loss"):
                sent[name.removesuffix("loss") + "ppl"] = math.exp(min(value, 700.0))
        self._accelerator.log(sent, step=step)

    def _write(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with os.fdopen(open_log(self._metrics), "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._writes = False
            logger.warning("figures are not written from step %s on: %s", line["step"], error)

    def _start_trackers(self) -> None:
        options = self._options
        if not options.trackers:
            return
        config = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in vars(options).items()
            if value is not None
        }
        wandb = {"name": options.wandb_run, "entity": options.wandb_entity, "dir": str(options.record)}
        given = {"wandb": {name: value for name, value in wandb.items() if value}}
        options.record.mkdir(parents=True, exist_ok=True)
        self._accelerator.init_trackers(options.wandb_project or options.save_ckpt.name, config, given)

    @contextmanager
    def _log_file(self) -> Iterator[None]:
        """Write log lines of this library to train.log too."""
        package = logging.getLogger("hmt")
        with os.fdopen(open_log(self._options.record / "train.log"), "a", encoding="utf-8") as stream:
            handler = logging.StreamHandler(stream)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            level = package.level
            package.addHandler(handler)
            package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
            try:
                yield
            finally:
                package.setLevel(level)
                package.removeHandler(handler)


def check_trackers(options: TrainOptions) -> None:
    """Raise an ImportError that names the package if a tracker's is not installed."""
    for name in options.trackers:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise ImportError(f"--report_to {name} needs {PACKAGES[name][0]}: pip install {PACKAGES[name][0]}")
