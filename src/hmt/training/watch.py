"""What can be seen of a run: trackers through Accelerate, and pictures in the run's record."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hmt.atomic import open_log
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import RecallTrace
from hmt.report import check_installed
from hmt.report.data import trace_records
from hmt.training.options import TrainOptions

logger = logging.getLogger(__name__)

PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboardX", "tensorboard"), "trackio": ("trackio",)}
"""Any of these serves a tracker; the first is the smallest."""


def check_trackers(options: TrainOptions) -> list[str]:
    """The trackers that the options name.

    Raises:
        ImportError: If one is not installed; names the package.
    """
    for name in options.trackers:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise ImportError(f"--report_to {name} needs {PACKAGES[name][0]}: pip install {PACKAGES[name][0]}")
    return options.trackers


def begin_tracking(accelerator: Accelerator, options: TrainOptions) -> None:
    """Tell the trackers of a run."""
    if not options.trackers:
        return
    settings = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in vars(options).items()
        if value is not None
    }
    wandb = {"name": options.wandb_run, "entity": options.wandb_entity, "dir": str(options.record)}
    given = {"wandb": {name: value for name, value in wandb.items() if value}} if "wandb" in options.trackers else {}
    options.record.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers(options.wandb_project or options.save_ckpt.name, config=settings, init_kwargs=given)


def show_pictures(accelerator: Accelerator, files: list[Path], step: int) -> None:
    """Give the pictures of a run to the trackers that take pictures."""
    for tracker in accelerator.trackers:
        if files and hasattr(tracker, "log_images"):
            from PIL import Image

            pictures = {file.stem: np.asarray(Image.open(file).convert("RGB"))[None] for file in files}
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=step, **layout)


@contextmanager
def logged_to(file: Path, writes: bool) -> Iterator[None]:
    """While this lasts, what is said on the console is written to a file too, with the time."""
    if not writes:
        yield
        return
    stream = os.fdopen(open_log(file), "a", encoding="utf-8")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("hmt")
    level = package.level
    package.addHandler(handler)
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
        handler.close()
        stream.close()


def flat(values: dict[str, Any]) -> dict[str, float]:
    """A step's figures as trackers take them: numbers by name, and perplexities beside the losses."""
    found: dict[str, float] = {}
    for name, value in list(values.items()):
        if name.endswith("loss"):
            values = values | {name.removesuffix("loss") + "ppl": math.exp(min(value, 700.0))}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}/{part}": number for part, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            found[name] = value
    return found


@torch.no_grad()
def recall_of(model: HMTForCausalLM, sample: Tensor) -> RecallTrace | None:
    """What is recalled while a sample (tokens,) is read; None in modes that recall nothing."""
    if not model.config.recalls:
        return None
    training = model.training
    model.eval()
    output = model(sample[None].to(model.device), output_recall=True, return_logits=False)
    model.train(training)
    return output.recall


def draw(record: Path, history: list[dict[str, Any]], trace: RecallTrace | None) -> list[Path]:
    """Draw the training curves of a run, and what it recalls at its end.

    Returns:
        The pictures; none, and a line in the log, without the packages that draw.
    """
    try:
        check_installed()
    except ImportError as error:
        logger.info("no pictures: %s", error)
        return []
    from hmt.report.charts import panels
    from hmt.report.drawing import save

    files = []
    if curves := panels({"history": history}, "Training"):
        files.append(record / "curves.png")
        save(curves, files[-1])
    if trace is not None and (recalled := panels({"recall": trace_records(trace)}, "Recall")):
        files.append(record / "recall.png")
        save(recalled, files[-1], columns=2)
    return files
