"""Validation and test: the loss of held-out samples, how far back they recall, and text generated after them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_file
from hmt.files import read_text
from hmt.metrics.machine import PartTimes
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import IGNORED, Readable, Sample, cut, pad
from hmt.training.options import TrainOptions

VALIDATION_SAMPLES = 8

GENERATED_TOKENS = 128
"""Maximum new tokens after a test sample."""


def held_out(documents: Sequence[Readable], sample_tokens: int, count: int) -> list[Sample]:
    """Choose at most `count` samples, evenly spread over the documents."""
    samples = cut(documents, sample_tokens)
    stride = max(len(samples) / count, 1)
    return [samples[int(number * stride)] for number in range(min(count, len(samples)))]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode, without gradients, inside the block."""
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def score(
    accelerator: Accelerator,
    model: nn.Module,
    samples: list[Sample],
    batch_size: int,
    loss_tokens: int | None,
    distances: Counter[int] | None = None,
) -> dict[str, float]:
    """Compute mean nats per scored target and perplexity over all processes.

    Every process reads the same number of batches, so that sharded weights can be gathered for each.

    Args:
        accelerator: Accelerator of the run.
        model: The model, prepared or not.
        samples: Samples of all processes.
        batch_size: Samples in a batch of one process.
        loss_tokens: Number of last tokens of a sample to score; None for all.
        distances: Receives the recall distances that this process saw.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    with eval_mode(model):
        for start in range(0, len(samples), batch_size * processes):
            group = samples[start : start + batch_size * processes]
            own = group[rank::processes]
            batch = pad(own or group[:1])
            with accelerator.autocast():
                output = model(
                    batch.input_ids.to(accelerator.device),
                    attention_mask=batch.attention_mask.to(accelerator.device),
                    labels=batch.labels.to(accelerator.device),
                    loss_tokens=loss_tokens,
                    return_logits=False,
                    output_recall=distances is not None,
                )
            if own:
                sums += torch.stack([output.nll.sum().double(), output.scored_mask.sum().double()])
            if own and distances is not None:
                distances.update(output.recall.distances)
    nats, targets = accelerator.reduce(sums, reduction="sum").tolist()
    loss = nats / targets
    return {"loss": loss, "ppl": math.exp(min(loss, 700.0)), "targets": targets}


def evaluate_test_split(
    accelerator: Accelerator,
    model: HMTForCausalLM,
    samples: list[Sample],
    options: TrainOptions,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, Any], list[str]]:
    """Score test samples; time them, plot recall distances and generate text if the options ask for it.

    Returns:
        The figures, and a line on each of these.
    """
    size, lines = options.batch_size, []
    distances: Counter[int] | None = Counter() if options.plot_hist and model.config.recalls else None
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
        lines.append(_plot_distances(accelerator, distances, options, figures))
    if options.generate is not None and accelerator.is_main_process:
        lines.append(_generate(model, samples, options, tokenizer))
    return figures, lines


def bottleneck_error(model: HMTForCausalLM) -> float | None:
    """Relative norm of what the DCT bottleneck drops, averaged over positions and layers; None without one."""
    extensions = dict(model.extensions.items())
    return extensions["dct_bottleneck"].error if "dct_bottleneck" in extensions else None  # type: ignore[return-value]


def _plot_distances(
    accelerator: Accelerator, distances: Counter[int] | None, options: TrainOptions, figures: dict[str, Any]
) -> str:
    """Plot the recall distances of all processes, add them to the figures, and return a line about it."""
    if distances is None:
        return f"plot_hist: mode {options.mode} has no recall"
    total: Counter[int] = Counter()
    for distance, count in gather_object(list(distances.items())):
        total[distance] += count
    figures["recall_distances"] = {str(distance): count for distance, count in sorted(total.items())}
    if not total:
        return "plot_hist: the test samples are too short for recall"
    picture, numbers = (options.record / f"recall_distances.{kind}" for kind in ("png", "csv"))
    if accelerator.is_main_process:
        from hmt.report.charts import panels
        from hmt.report.drawing import save

        (histogram,) = panels(figures, "Recall")
        save([histogram], picture)
        with atomic_file(numbers) as file:
            file.write_text(histogram.csv())
    return f"recall distances of {total.total():,} segments in {picture} and {numbers}"


def _generate(
    model: HMTForCausalLM, samples: list[Sample], options: TrainOptions, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Generate text after each sample and the prompt, greedily, and return a line about it."""
    prompt = read_prompt(options.generate or "")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    records = []
    for number, sample in enumerate(samples):
        scored = (sample.labels != IGNORED).nonzero()
        answer = int(scored[0]) if len(scored) else 0  # of a question only its answer is scored: it is not read
        context = sample.ids[: answer if answer > 1 else len(sample)]
        ids = torch.cat([context, torch.tensor(prompt_ids, dtype=torch.long)])[None].to(model.device)
        output = model.generate(ids, max_new_tokens=GENERATED_TOKENS, do_sample=False)
        assert isinstance(output, Tensor)
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        records.append({"sample": number, "read_tokens": len(context), "prompt": prompt, "text": text})
    file = options.record / "generated.jsonl"
    with atomic_file(file) as unfinished:
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"text generated after {len(records)} test samples in {file}"


def read_prompt(text: str) -> str:
    """Read the file of that name, or return the text itself if there is none."""
    try:
        is_file = bool(text) and Path(text).exists() and not Path(text).is_dir()  # it may be a pipe
    except (OSError, ValueError):  # a text that no file can have for a name
        is_file = False
    return read_text(Path(text)) if is_file else text
