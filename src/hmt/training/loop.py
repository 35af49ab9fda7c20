"""The training loop: stages of optimizer steps, validated, saved, stopped and resumed."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from hmt.metrics.timing import PartTimes
from hmt.model.compiled import compile_layers
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.text.batches import Readable, Sample, cut, pad, scored_targets, shuffled
from hmt.training import progress as runs
from hmt.training.curriculum import (
    PartSizes,
    Stage,
    choose_trained_parts,
    curriculum,
    describe_parts,
    learning_rate_schedule,
    parameter_groups,
)
from hmt.training.launch import (
    check_stages,
    gathered,
    is_cut_up,
    load_engine,
    make_accelerator,
    save_engine,
    uses_deepspeed,
)
from hmt.training.options import TrainOptions
from hmt.training.progress import Record, Saved
from hmt.training.scoring import held_out, score
from hmt.training.step import Stepper, StepResult
from hmt.training.testing import bottleneck_error
from hmt.training.watch import begin_tracking, draw, flat, logged_to, recall_of, show_pictures

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 10

DRAWN_SEGMENTS = 64
"""Segments of a text whose recall is drawn at the end."""


class Training:
    """A run.

    Args:
        model: Trained in place.
        options: Of the run.
        tokenizer: Saved with the checkpoint.
        saved: Go on from here; the model must be the one of that checkpoint.
        keep: Write checkpoints and the record of the run.
        accelerator: To run with; made from the options where None.
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
        changes_model = any(stage.mode != model.config.mode for stage in self.stages)
        check_stages(self.accelerator, options, len(self.stages), changes_model)
        self.interrupted = False
        choose_trained_parts(model, options)
        parameter_groups(model, options)  # complains where there is nothing to train
        if options.compile:
            compile_layers(model.backbone)
        model.checkpoint_segments = options.gradient_checkpointing
        self._tokenizer = tokenizer
        self._saved = saved or Saved()
        self._progress = self._saved.progress
        self._keep = keep
        self._signalled = False
        self._prepared: torch.nn.Module = model
        self._stepper: Stepper | None = None
        self._started = 0.0
        main = self.accelerator.is_main_process
        self._record = Record(options.record, writes=keep and main)
        self._times = PartTimes()
        self._bar: Any = None

    def run(self, documents: Sequence[Readable], validation: Sequence[Readable] | None = None) -> dict[str, Any]:
        """Train through the stages that are left.

        Args:
            documents: What to learn from: documents, or questions with their answers.
            validation: What to validate on, with `eval_step`.

        Returns:
            Figures of the run, with `history`: step, stage, loss (nats per scored token), learning rates, norms.

        Raises:
            FloatingPointError: If loss or gradient are not finite; the step is not taken.
        """
        self._started = time.monotonic() - self._progress.seconds
        self._record.begin(self.options, self._progress.steps)
        if self._keep:
            begin_tracking(self.accelerator, self.options)
        open_end = self.options.max_minutes is not None or self.options.max_tokens is not None
        total = None if open_end else sum(stage.steps for stage in self.stages)
        quiet = None if self.accelerator.is_main_process else True
        with (
            logged_to(self.options.record / "train.log", self._keep and self.accelerator.is_main_process),
            self._stopped_by_signals(),
            logging_redirect_tqdm(),
            tqdm(total=total, initial=self._progress.steps, unit="step", disable=quiet) as self._bar,
        ):
            self._say(describe_parts(self.model))
            steps = self._progress.steps
            for number in range(self._progress.stage, len(self.stages)):
                if number > self._progress.stage:
                    self._progress.next_stage()
                self._stage(self.stages[number], documents, validation)
                if self.interrupted:
                    break
                self._take_best()
            if steps == self._progress.steps and self._progress.finished:
                self._say(f"nothing is left to train: the run has ended after {steps} steps; raise --training_step")
            if self._keep and not self.interrupted:
                self.save()
            self._draw(validation or documents)
            if self.options.timing:
                self._say(f"time of a step: {self._times}")
        self.model.eval()
        return self._figures()

    def _stage(self, stage: Stage, documents: Sequence[Readable], validation: Sequence[Readable] | None) -> None:
        """Train through what is left of a stage, unless the run is stopped in it."""
        options, progress = self.options, self._progress
        reader = stage.reader(self.model)
        reader.train()
        sample_tokens = stage.segments * reader.config.fresh_tokens
        stepper = self._stepper = self._prepare(reader, stage)
        to_validate = held_out(validation, sample_tokens, options.eval_samples) if validation else []
        rows_per_step = options.batch_size * options.gradient_accumulation_steps * self.accelerator.num_processes
        order = options.seed if options.shuffle_train else None
        samples = shuffled(cut(documents, sample_tokens), order, skip=progress.rows)
        while progress.step < stage.steps and not self._is_over(stage):
            progress.finished = False
            result = self._step(stepper, list(islice(samples, rows_per_step)), stage)
            every = options.eval_step
            if to_validate and every and progress.steps % every == 0:
                self._validate(stepper, to_validate)
            # Asked once a step, and of all processes: a signal may come at any moment, to any of them.
            self.interrupted = self._any(self._signalled)
            due = options.save_every is not None and progress.steps % options.save_every == 0
            if due or self.interrupted:
                self._save(stepper)
            self._show(stage, result)
            if self.interrupted:
                break

    def _prepare(self, reader: HMTForCausalLM, stage: Stage) -> Stepper:
        """Optimizer, schedule and what the accelerator makes of the model, as they were where the run was saved."""
        self.accelerator.free_memory()  # of the stage before
        optimizer = torch.optim.AdamW(parameter_groups(reader, self.options), weight_decay=self.options.weight_decay)
        scheduler = learning_rate_schedule(optimizer, self.options, stage.steps)
        prepared, optimizer = self.accelerator.prepare(reader, optimizer)
        self._prepared = prepared
        resumes = self._progress.step and load_engine(self.accelerator, prepared, self.options.save_ckpt)
        if self._progress.step and self._saved.optimizer is not None:
            if not resumes:
                optimizer.load_state_dict(self._saved.optimizer["optimizer"])
            scheduler.load_state_dict(self._saved.optimizer["scheduler"])
            if self.accelerator.scaler is not None and "scaler" in self._saved.optimizer:
                self.accelerator.scaler.load_state_dict(self._saved.optimizer["scaler"])
        return Stepper(self.accelerator, prepared, optimizer, scheduler, self.options)

    def _step(self, stepper: Stepper, rows: list[Sample], stage: Stage) -> StepResult:
        progress, rank = self._progress, self.accelerator.process_index
        # Dropout is drawn from the number of the step, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed((self.options.seed << 32) + (progress.steps << 8) + rank)
        batch = pad(rows[rank :: self.accelerator.num_processes], stepper.fresh_tokens)
        with self._times.measure() if self.options.timing else nullcontext():
            result = stepper.take(batch, scored_targets(rows, self.options.loss_tokens))
        progress.step += 1
        progress.steps += 1
        progress.rows += len(rows)
        progress.tokens += sum(len(row) for row in rows)
        progress.seconds = time.monotonic() - self._started
        self._record.add(
            step=progress.steps,
            stage=stage.name,
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rates=result.learning_rates,
            seconds=round(progress.seconds, 3),
            **({} if result.retrieval_loss is None else {"retrieval_loss": result.retrieval_loss}),
        )
        if self._keep:
            self.accelerator.log(flat(self._record.history[-1]), step=progress.steps)
        return result

    def _validate(self, stepper: Stepper, samples: list[Sample]) -> None:
        """Score the samples, and note the best."""
        options, progress = self.options, self._progress
        found = score(self.accelerator, stepper.model, samples, options.batch_size, options.loss_tokens)
        better = found["loss"] < (math.inf if progress.best is None else progress.best)
        if better:
            progress.best, progress.stale = found["loss"], 0
            if options.patience is not None:
                self._saved.best = {name: p.detach().cpu().clone() for name, p in self._trained()}
        else:
            progress.stale += 1
        self._record.amend(validation_loss=found["loss"])
        if self._keep:
            self.accelerator.log(flat({"validation_loss": found["loss"]}), step=progress.steps)
        self._say(f"step {progress.steps}: validation loss {found['loss']:.4f}, perplexity {found['ppl']:.2f}")

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _take_best(self) -> None:
        """With patience, the weights of the stage's best validation."""
        if self._saved.best is None:
            return
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self._saved.best[name])
        self._saved.best = None

    def save(self) -> None:
        """Write the checkpoint of a finished run, which can be given more steps.

        Raises:
            OSError: If it cannot be written.
        """
        weights = gathered(self.accelerator, self.model)
        engine = save_engine(self.accelerator, self._prepared, self.options.save_ckpt)
        self._progress.finished = True
        state = None if weights is not None or self._stepper is None else self._optimizer_state(self._stepper)
        if self.accelerator.is_main_process:
            runs.save(self.model, self._tokenizer, self.options, Saved(self._progress, state), engine, weights)

    def close(self) -> None:
        """Let go of the other processes and of the trackers; nothing can be trained after it.

        What was made of the model goes first. It would otherwise be the last to hold the group of processes, and free
        it with Python's lock in hand, for which one of the group's own threads may wait: the process would never end.
        """
        self._prepared, self._stepper = self.model, None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _save(self, stepper: Stepper) -> None:
        """Write a checkpoint to go on from. Where that fails the run goes on, with the one before it in place."""
        if not self._keep:
            return
        if is_cut_up(self.model):  # only whole weights can be kept of it
            self.save()
            return
        saved = Saved(self._progress, self._optimizer_state(stepper), self._saved.best)
        try:
            engine = save_engine(self.accelerator, stepper.model, self.options.save_ckpt)
            if self.accelerator.is_main_process:
                runs.save(self.model, self._tokenizer, self.options, saved, engine)
        except OSError as error:
            logger.warning("the checkpoint of step %d could not be saved: %s", self._progress.steps, error)

    def _optimizer_state(self, stepper: Stepper) -> dict[str, Any]:
        """What the optimizer has gathered, and where the schedule is."""
        state = {"scheduler": stepper.scheduler.state_dict()}
        if not uses_deepspeed(self.accelerator):
            state["optimizer"] = stepper.optimizer.state_dict()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def _draw(self, documents: Sequence[Readable]) -> None:
        """Pictures of the run, and of what is recalled at its end."""
        if not self._keep or self.interrupted or not self.accelerator.is_main_process:
            return
        longest = max(documents, key=lambda document: len(document.ids)).ids
        sample = longest[: DRAWN_SEGMENTS * self.model.config.fresh_tokens]
        trace = None if is_cut_up(self.model) else recall_of(self.model, sample)
        try:
            pictures = draw(self.options.record, self._record.history, trace)
        except OSError as error:
            logger.warning("the pictures of the run could not be written: %s", error)
            return
        show_pictures(self.accelerator, pictures, self._progress.steps)
        self._say(f"pictures in {', '.join(str(picture) for picture in pictures)}")

    def _is_over(self, stage: Stage) -> bool:
        """Whether a stage ends before its last step: no better validation for long, or no time or tokens left.

        The stages share `max_minutes` and `max_tokens` like their steps.
        """
        options, progress = self.options, self._progress
        if options.patience is not None and progress.stale >= options.patience:
            return True
        total = sum(one.steps for one in self.stages)
        share = (sum(one.steps for one in self.stages[: progress.stage]) + stage.steps) / total
        if options.max_tokens is not None and progress.tokens >= options.max_tokens * share:
            return True
        if options.max_minutes is None:
            return False
        return self._any(time.monotonic() - self._started >= 60 * options.max_minutes * share)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """While this lasts, being interrupted or terminated ends the run after the step at hand, with a checkpoint."""
        if not self._keep:
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.accelerator.num_processes == 1:
            return flag
        told = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, reduction="sum") > 0)

    def _show(self, stage: Stage, result: StepResult) -> None:
        progress = self._progress
        shown = {
            "stage": stage.name,
            "loss": f"{result.loss:.3f}",
            "tok/s": f"{progress.tokens / max(progress.seconds, 1e-9):.0f}",
        }
        if self.options.max_minutes is not None:
            shown["left"] = f"{max(60 * self.options.max_minutes - progress.seconds, 0):.0f} s"
        self._bar.update()
        self._bar.set_postfix(shown)
        if self._bar.disable and progress.steps % LOG_EVERY_STEPS == 0:  # no terminal: lines instead of a bar
            self._say(f"step {progress.steps}: {', '.join(f'{name} {value}' for name, value in shown.items())}")

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            logger.info("%s", line)

    def _figures(self) -> dict[str, Any]:
        progress = self._progress
        losses = [entry["loss"] for entry in self._record.history]
        return {
            "steps": progress.steps,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
            "trainable_parameters": sum(p.numel() for _, p in self._trained()),
            "extra_percent": PartSizes.of(self.model).memory_percent,
            "first_loss": _mean(losses[:LOG_EVERY_STEPS]),
            "last_loss": _mean(losses[-LOG_EVERY_STEPS:]),
            "best_validation_loss": progress.best,
            "bottleneck_error": bottleneck_error(self.model),
            "timing": self._times.result() if self.options.timing else None,
            "interrupted": self.interrupted,
            "processes": self.accelerator.num_processes,
            "history": self._record.history,
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
