"""The training loop: stages of optimizer steps, with validation, checkpoints and resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from hmt.metrics.machine import PartTimes
from hmt.model.backbone import compile_layers
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.terminal import ProgressBar, on_interrupt
from hmt.text.batches import Readable, Sample, cut, pad, scored_targets, shuffled
from hmt.training import progress as checkpoints
from hmt.training.curriculum import (
    PartSizes,
    Stage,
    choose_trained_parts,
    curriculum,
    learning_rate_schedule,
    parameter_groups,
)
from hmt.training.launch import check_stages, gathered, load_engine, make_accelerator, save_engine, uses_deepspeed
from hmt.training.options import TrainOptions
from hmt.training.progress import Saved
from hmt.training.record import Record
from hmt.training.step import Stepper, StepResult
from hmt.training.testing import VALIDATION_SAMPLES, bottleneck_error, held_out, score

logger = logging.getLogger(__name__)

AVERAGED_STEPS = 10
"""Steps over which the first and the last loss of a run are averaged."""


class Training:
    """A run.

    Args:
        model: Model, trained in place.
        options: Options of the run.
        tokenizer: Saved with the checkpoint.
        saved: State to continue from; the model must be the one of that checkpoint.
        keep: Write checkpoints and the record of the run.
        accelerator: Accelerator to run with; made from the options if None.

    Attributes:
        interrupted: True if a signal ended the run early.

    Raises:
        ValueError: If there is nothing to train, or the engine cannot train these stages.
    """

    def __init__(
        self,
        model: HMTForCausalLM,
        options: TrainOptions,
        tokenizer: PreTrainedTokenizerBase | None = None,
        saved: Saved | None = None,
        keep: bool = True,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.accelerator = accelerator or make_accelerator(options, model.device)
        self.stages = curriculum(options)
        self.interrupted = False
        check_stages(self.accelerator, options, self.stages, model.config.mode)
        choose_trained_parts(model, options)
        parameter_groups(model, options)  # raises if there is nothing to train
        if options.compile:
            compile_layers(model.backbone)
        model.checkpoint_segments = options.gradient_checkpointing
        self.record = Record(options, self.accelerator, keep)
        self._tokenizer = tokenizer
        self._saved = saved or Saved()
        self._progress = self._saved.progress
        self._keep = keep
        self._stop_requested = False
        self._stepper: Stepper | None = None
        self._times = PartTimes()

    def run(self, documents: Sequence[Readable], validation: Sequence[Readable] | None = None) -> dict[str, Any]:
        """Train through the stages that are left.

        Args:
            documents: Training documents, or questions with their answers.
            validation: Validation documents, scored every `eval_step` steps.

        Returns:
            Figures of the run, with `history`: step, stage, loss (nats per scored token), learning rates, norms.

        Raises:
            FloatingPointError: If loss or gradient are not finite; the step is not taken.
        """
        progress, begun_at = self._progress, self._progress.steps
        total = None if self.options.max_tokens else sum(stage.steps for stage in self.stages)
        with ExitStack() as stack:
            stack.enter_context(self.record.open(begun_at))
            if self._keep:
                stack.enter_context(on_interrupt(self._request_stop))
            bar = stack.enter_context(
                ProgressBar("steps", total, begun_at, hidden=not self.accelerator.is_main_process)
            )
            self._say("parameters: %s; trained: %s", PartSizes.of(self.model), f"{self._trained_parameters():,}")
            for number in range(progress.stage, len(self.stages)):
                if number > progress.stage:
                    progress.next_stage()
                self._train_stage(self.stages[number], documents, validation, bar)
                if self.interrupted:
                    break
            if progress.steps == begun_at and progress.finished:
                self._say("the run has ended after %d steps; raise --training_step to continue it", begun_at)
            if self._keep and not self.interrupted:
                self.save()
            if self.options.timing:
                self._say("time of a step: %s", self._times)
        self.model.eval()
        return self._figures()

    def _train_stage(
        self, stage: Stage, documents: Sequence[Readable], validation: Sequence[Readable] | None, bar: ProgressBar
    ) -> None:
        """Train through what is left of a stage, or until the run is stopped."""
        options, progress = self.options, self._progress
        sample_tokens = stage.sample_tokens(self.model)
        stepper = self._stepper = self._prepare(stage)
        validation_samples = held_out(validation, sample_tokens, VALIDATION_SAMPLES) if validation else []
        step_rows = options.batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        seed = options.seed if options.shuffle_train else None
        samples = shuffled(cut(documents, sample_tokens), seed, skip=progress.rows)
        while progress.step < stage.steps and not self._out_of_tokens(stage):
            progress.finished = False
            started = time.monotonic()
            rows = list(islice(samples, step_rows))
            result = self._step(stepper, rows)
            progress.step += 1
            progress.steps += 1
            progress.rows += len(rows)
            progress.tokens += sum(len(row) for row in rows)
            progress.seconds += time.monotonic() - started
            self._log_step(stage, result, bar)
            if validation_samples and options.eval_step and progress.steps % options.eval_step == 0:
                self._validate(stepper, validation_samples)
            # Asked once per step, and of all processes: a signal may come at any moment, to any of them.
            self.interrupted = self._any(self._stop_requested)
            due = options.save_every is not None and progress.steps % options.save_every == 0
            if self._keep and (due or self.interrupted):
                self._save_midway()
            if self.interrupted:
                break

    def _prepare(self, stage: Stage) -> Stepper:
        """Prepare model, optimizer and schedule of a stage, in the state they were saved in."""
        self.accelerator.free_memory()  # of the stage before
        reader = stage.variant(self.model)
        reader.train()
        optimizer = torch.optim.AdamW(parameter_groups(reader, self.options), weight_decay=self.options.weight_decay)
        scheduler = learning_rate_schedule(optimizer, self.options, stage.steps)
        prepared, optimizer = self.accelerator.prepare(reader, optimizer)
        saved = self._saved.optimizer
        if self._progress.step:
            restored = load_engine(self.accelerator, prepared, self.options.save_ckpt)
            if saved is not None:
                if not restored:
                    optimizer.load_state_dict(saved["optimizer"])
                scheduler.load_state_dict(saved["scheduler"])
                if self.accelerator.scaler is not None and "scaler" in saved:
                    self.accelerator.scaler.load_state_dict(saved["scaler"])
        return Stepper(self.accelerator, prepared, optimizer, scheduler, self.options)

    def _step(self, stepper: Stepper, rows: list[Sample]) -> StepResult:
        """Take one optimizer step on samples of all processes."""
        rank = self.accelerator.process_index
        # Dropout is drawn from the number of the step, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed((self.options.seed << 32) + (self._progress.steps << 8) + rank)
        batch = pad(rows[rank :: self.accelerator.num_processes], stepper.fresh_tokens)
        with self._times.measure() if self.options.timing else nullcontext():
            return stepper.take(batch, scored_targets(rows, self.options.loss_tokens))

    def _log_step(self, stage: Stage, result: StepResult, bar: ProgressBar) -> None:
        """Record and show the figures of a step."""
        progress = self._progress
        self.record.add(
            step=progress.steps,
            stage=stage.name,
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rates=result.learning_rates,
            seconds=round(progress.seconds, 3),
            **({} if result.retrieval_loss is None else {"retrieval_loss": result.retrieval_loss}),
        )
        bar.update(1, stage=stage.name, loss=f"{result.loss:.3f}", tokens=f"{self._tokens_per_second():,.0f}/s")

    def _validate(self, stepper: Stepper, samples: list[Sample]) -> None:
        """Score validation samples."""
        options, steps = self.options, self._progress.steps
        found = score(self.accelerator, stepper.model, samples, options.batch_size, options.loss_tokens)
        self.record.amend(validation_loss=found["loss"])
        self._say("step %d: validation loss %.4f, perplexity %.2f", steps, found["loss"], found["ppl"])

    def save(self, finished: bool = True) -> None:
        """Write the checkpoint; all processes must call it together.

        Args:
            finished: The run has ended; it can still be continued with more steps.

        Raises:
            OSError: If it cannot be written.
        """
        assert self._stepper is not None
        self._progress.finished = finished
        weights = gathered(self.accelerator, self.model)
        engine = save_engine(self.accelerator, self._stepper.model, self.options.save_ckpt)
        optimizer = self._optimizer_state(self._stepper) if weights is None else None
        if self.accelerator.is_main_process:
            saved = Saved(self._progress, optimizer)
            checkpoints.save(self.model, self._tokenizer, self.options, saved, engine, weights)

    def _save_midway(self) -> None:
        """Write a checkpoint to continue from; if that fails, the run goes on and keeps the one before."""
        try:
            self.save(finished=False)
        except OSError as error:
            logger.warning("the checkpoint of step %d could not be saved: %s", self._progress.steps, error)

    def _optimizer_state(self, stepper: Stepper) -> dict[str, Any]:
        state = {"scheduler": stepper.scheduler.state_dict()}
        if not uses_deepspeed(self.accelerator):
            state["optimizer"] = stepper.optimizer.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def close(self) -> None:
        """Release the other processes and the trackers; nothing can be trained afterwards.

        The prepared model goes first. It would otherwise be the last to hold the process group, and free it with
        Python's lock in hand, which one of the group's own threads may wait for: the process would never end.
        """
        self._stepper = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _out_of_tokens(self, stage: Stage) -> bool:
        """True at the end of a stage's share of `max_tokens`, which the stages divide like their steps."""
        if self.options.max_tokens is None:
            return False
        total = sum(one.steps for one in self.stages)
        due = sum(one.steps for one in self.stages[: self._progress.stage]) + stage.steps
        return self._progress.tokens >= self.options.max_tokens * due / total

    def _request_stop(self) -> None:
        self._stop_requested = True

    def _any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        if self.accelerator.num_processes == 1:
            return flag
        count = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, reduction="sum") > 0)

    def _say(self, line: str, *values: Any) -> None:
        if self.accelerator.is_main_process:
            logger.info(line, *values)

    def _trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def _tokens_per_second(self) -> float:
        return self._progress.tokens / max(self._progress.seconds, 1e-9)

    def _figures(self) -> dict[str, Any]:
        progress, history = self._progress, self.record.history
        losses = [entry["loss"] for entry in history]
        validated = [entry["validation_loss"] for entry in history if "validation_loss" in entry]
        return {
            "steps": progress.steps,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "tokens_per_second": self._tokens_per_second(),
            "trainable_parameters": self._trained_parameters(),
            "extra_percent": PartSizes.of(self.model).memory_percent,
            "first_loss": _mean(losses[:AVERAGED_STEPS]),
            "last_loss": _mean(losses[-AVERAGED_STEPS:]),
            "best_validation_loss": min(validated, default=None),
            "bottleneck_error": bottleneck_error(self.model),
            "timing": self._times.result() if self.options.timing else None,
            "interrupted": self.interrupted,
            "processes": self.accelerator.num_processes,
            "history": history,
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
