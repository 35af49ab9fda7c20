"""`hmt train`: teach the memory in two stages.

Stage 1 reads two segments with the last memory embedding only, stage 2 longer samples with recall, as in HMT
(arXiv:2405.06067, section 4). Both train the same parameters, so a run is one model read in two ways.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_directory
from hmt.model.hmt import HMTForCausalLM
from hmt.model.loading import load
from hmt.options import TrainOptions
from hmt.text.batches import Batch, TokenDocument, tokenize, training_batches
from hmt.text.tasks import load_documents

logger = logging.getLogger(__name__)

STAGE_1_SEGMENTS = 2
LOG_EVERY_STEPS = 10
ADVICE = "lower --memory_learning_rate or --learning_rate, or use --dtype float32"


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum: how the model reads, how many segments a sample has, and for how many steps."""

    name: str
    mode: str
    segments: int
    steps: int


def run(options: TrainOptions) -> tuple[dict[str, Any], str]:
    """Load what the options name, train it, and save the checkpoint.

    Returns:
        The figures, and a closing line.
    """
    documents = load_documents(
        options.task_name,
        "train",
        subset=options.task_subset,
        text_column=options.text_column,
        limit=options.max_documents,
    )
    model, tokenizer = load(options)
    tokens = tokenize(documents, tokenizer, len(model.embedding_table))
    figures = fit(model, tokens, options)
    save(model, tokenizer, options, figures)
    closing = (
        f"trained {figures['trainable_parameters']:,} parameters ({figures['extra_percent']:.2f}% of the backbone) for "
        f"{figures['steps']} steps and {figures['tokens']:,} tokens in {figures['seconds']:.0f} s; "
        f"loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f}; checkpoint in {options.save_ckpt}"
    )
    return figures, closing


def fit(model: HMTForCausalLM, documents: list[TokenDocument], options: TrainOptions) -> dict[str, Any]:
    """Train a model in place.

    Returns:
        Figures of the run, with `history`: step, stage, loss (nats per scored token), learning rates, gradient norm.

    Raises:
        FloatingPointError: If the loss is not finite; the step is not taken.
    """
    choose_trained_parts(model, options)
    optimizer = torch.optim.AdamW(parameter_groups(model, options), weight_decay=options.weight_decay)
    gamma = options.lr_decay_gamma if options.lr_decay else 1.0
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=options.lr_decay_step, gamma=gamma)
    stages = curriculum(options)
    history: list[dict[str, Any]] = []
    started, tokens = time.monotonic(), 0
    deadline = math.inf if options.max_minutes is None else started + 60 * options.max_minutes
    total = sum(stage.steps for stage in stages) if options.max_minutes is None else None
    with tqdm(total=total, unit="step", disable=None) as bar:
        for stage, reader, batch in _schedule(model, documents, stages, options, started, deadline):
            loss, norm = training_step(reader, batch, optimizer, options)
            rates = scheduler.get_last_lr()
            scheduler.step()
            tokens += int(batch.attention_mask.sum())
            history.append(
                {
                    "step": len(history) + 1,
                    "stage": stage.name,
                    "loss": loss,
                    "grad_norm": norm,
                    "learning_rates": rates,
                }
            )
            now = time.monotonic()
            shown = {"stage": stage.name, "loss": f"{loss:.3f}", "tok/s": f"{tokens / (now - started):.0f}"}
            if options.max_minutes is not None:
                shown["left"] = f"{max(deadline - now, 0):.0f} s"
            bar.update()
            bar.set_postfix(shown)
            if bar.disable and len(history) % LOG_EVERY_STEPS == 0:  # no terminal: lines instead of a bar
                logger.info("step %d: %s", len(history), ", ".join(f"{name} {value}" for name, value in shown.items()))
    model.eval()
    return _figures(model, history, tokens, time.monotonic() - started)


def training_step(
    model: HMTForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer, options: TrainOptions
) -> tuple[float, float]:
    """One optimizer step: loss in nats per scored token, and the norm of the gradient before clipping."""
    output = model(
        batch.input_ids.to(model.device),
        attention_mask=batch.attention_mask.to(model.device),
        labels=batch.labels.to(model.device),
        loss_tokens=options.loss_tokens,
        return_logits=False,
    )
    loss = float(output.loss.detach())
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}; the step was not taken: {ADVICE}")
    optimizer.zero_grad(set_to_none=True)
    output.loss.backward()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(trained, options.max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm} at a loss of {loss:.3f}; the step was not taken: {ADVICE}"
        )
    optimizer.step()
    return loss, norm


def choose_trained_parts(model: HMTForCausalLM, options: TrainOptions) -> None:
    """Freeze the backbone, adapt it, or train it whole."""
    if options.train_backbone:
        model.requires_grad_(True)
        return
    if options.use_lora and not model.has_adapter:
        model.add_lora(options.lora_rank, options.lora_alpha, options.lora_dropout)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(options.use_lora and "lora_" in name)


def parameter_groups(model: HMTForCausalLM, options: TrainOptions) -> list[dict[str, Any]]:
    """The memory's parameters and the backbone's, each with its learning rate."""
    memory = [parameter for parameter in model.memory.parameters() if parameter.requires_grad]
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    groups = [
        {"name": "memory", "params": memory, "lr": options.memory_learning_rate},
        {"name": "backbone", "params": backbone, "lr": options.learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing to train: mode backbone has no memory; give --use_lora or --train_backbone")
    return groups


def curriculum(options: TrainOptions) -> list[Stage]:
    """The stages that the options ask for. A model without recall has only one way of reading."""
    stage_1 = Stage("1", "short_term", STAGE_1_SEGMENTS, options.stage_1_step)
    stage_2 = Stage("2", options.mode, options.bptt_depth, options.training_step)
    if options.hmt_stage_1:
        return [Stage("1", "short_term", STAGE_1_SEGMENTS, options.training_step)]
    if options.hmt_stage_2 or options.mode != "hmt" or not options.stage_1_step:
        return [stage_2]
    return [stage_1, stage_2]


def save(
    model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase, options: TrainOptions, figures: dict[str, Any]
) -> None:
    """Write checkpoint, tokenizer and the run's figures, whole or not at all."""
    with atomic_directory(options.save_ckpt) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        run_record = {"options": asdict(options), **figures}
        (folder / "training.json").write_text(json.dumps(run_record, indent=1, default=str) + "\n")


def _schedule(
    model: HMTForCausalLM,
    documents: list[TokenDocument],
    stages: list[Stage],
    options: TrainOptions,
    started: float,
    deadline: float,
) -> Iterator[tuple[Stage, HMTForCausalLM, Batch]]:
    """The batches of each stage in turn, and the model as the stage reads it.

    A time limit is shared between the stages like their steps.
    """
    total = sum(stage.steps for stage in stages)
    done = 0
    for stage in stages:
        done += stage.steps
        end = started + (deadline - started) * done / total
        reader = model if stage.mode == model.config.mode else model.variant(mode=stage.mode)
        reader.train()
        sample_tokens = stage.segments * reader.config.fresh_tokens
        batches = training_batches(documents, sample_tokens, options.batch_size, options.seed)
        for _ in range(stage.steps):
            if time.monotonic() >= end:
                break
            yield stage, reader, next(batches)


def _figures(model: HMTForCausalLM, history: list[dict[str, Any]], tokens: int, seconds: float) -> dict[str, Any]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    backbone = sum(p.numel() for name, p in model.backbone.named_parameters() if "lora_" not in name)
    losses = [entry["loss"] for entry in history]
    return {
        "steps": len(history),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "trainable_parameters": trainable,
        "extra_percent": 100 * sum(p.numel() for p in model.memory.parameters()) / backbone,
        "first_loss": _mean(losses[:LOG_EVERY_STEPS]),
        "last_loss": _mean(losses[-LOG_EVERY_STEPS:]),
        "history": history,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
