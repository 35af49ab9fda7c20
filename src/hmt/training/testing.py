"""What is made of the test samples of a run: their loss, how far back they recall, what is written after them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_file
from hmt.files import read_text
from hmt.metrics.timing import PartTimes
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import IGNORED, Sample
from hmt.training.options import TrainOptions
from hmt.training.scoring import score

WRITTEN_TOKENS = 128
"""New tokens after a test sample, as long as the model does not end earlier."""


def examine(
    accelerator: Accelerator,
    model: HMTForCausalLM,
    samples: list[Sample],
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[dict[str, Any], list[str]]:
    """Score the samples, and do with them what else the options ask for.

    Returns:
        The figures, and lines on what was done besides scoring.
    """
    distances: Counter[int] | None = Counter() if options.plot_hist and model.config.recalls else None
    size, lines = options.batch_size, []
    figures: dict[str, Any] = {**score(accelerator, model, samples, size, options.loss_tokens, distances)}
    if options.timing:
        times = PartTimes()
        for _ in range(2):
            with times.measure():
                score(accelerator, model, samples[: size * accelerator.num_processes], size, options.loss_tokens)
        figures["timing"] = times.result()
        lines.append(f"time of a batch of test samples: {times}")
    if (error := bottleneck_error(model)) is not None:
        figures["bottleneck_error"] = error
    if options.plot_hist:
        lines.append(_histogram(accelerator, distances, options, figures))
    if options.generate is not None:
        lines.append(_write_on(accelerator, model, samples, options, tokenizer))
    return figures, lines


def bottleneck_error(model: HMTForCausalLM) -> float | None:
    """Relative norm of what the DCT bottleneck drops, mean over positions and layers; None without one."""
    extensions = dict(model.extensions.items())
    return extensions["dct_bottleneck"].error if "dct_bottleneck" in extensions else None  # type: ignore[return-value]


def _histogram(
    accelerator: Accelerator, distances: Counter[int] | None, options: TrainOptions, figures: dict[str, Any]
) -> str:
    """Draw how far back the samples of all processes recalled; returns a line about it."""
    if distances is None:
        return f"plot_hist: mode {options.mode} recalls nothing"
    total: Counter[int] = Counter()
    for pair in gather_object(list(distances.items())):
        total[pair[0]] += pair[1]
    figures["recall_distances"] = {str(distance): count for distance, count in sorted(total.items())}
    if not total:
        return "plot_hist: the test samples are too short to recall anything"
    picture, numbers = (options.record / f"recall_distances.{kind}" for kind in ("png", "csv"))
    if accelerator.is_main_process:
        from hmt.report.charts import panels
        from hmt.report.drawing import save

        (histogram,) = panels(figures, "Recall")
        save([histogram], picture)
        with atomic_file(numbers) as file:
            file.write_text(histogram.csv())
    return f"recall distances of {total.total():,} segments in {picture} and {numbers}"


@torch.no_grad()
def _write_on(
    accelerator: Accelerator,
    model: HMTForCausalLM,
    samples: list[Sample],
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """Write on after each sample, greedily; returns a line about it."""
    file = options.record / "generated.jsonl"
    if not accelerator.is_main_process:
        return ""
    if tokenizer is None:
        raise ValueError("generate needs the tokenizer of the model")
    asked = _prompt(options.generate or "")
    extra = tokenizer(asked, add_special_tokens=False, return_tensors="pt")["input_ids"].long() if asked else None
    records = []
    for number, sample in enumerate(samples):
        scored = (sample.labels != IGNORED).nonzero()
        answer = int(scored[0]) if len(scored) else 0  # what is scored of a question is its answer: it is not read
        read = sample.ids[None, : answer if answer > 1 else len(sample)]
        ids: Tensor = read if extra is None else torch.cat([read, extra], dim=1)
        ids = ids.to(model.device)
        written = model.generate(ids, max_new_tokens=WRITTEN_TOKENS, do_sample=False)
        assert isinstance(written, Tensor)
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        records.append({"sample": number, "read_tokens": read.shape[1], "prompt": asked, "text": text})
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as unfinished:
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"what was written after {len(records)} test samples is in {file}"


def _prompt(text: str) -> str:
    """The prompt itself, or what is in the file of that name."""
    try:
        is_file = bool(text) and Path(text).exists() and not Path(text).is_dir()  # it may be a pipe
    except (OSError, ValueError):  # a prompt that no file can have for a name
        is_file = False
    return read_text(Path(text)) if is_file else text
