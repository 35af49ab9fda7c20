"""One optimizer step over the samples of all processes.

The loss is the mean over all scored targets of the step, however they are split into processes and micro-steps: each
part adds its sum of nats, divided by the number of targets of the whole step.

Shape legend: B rows of this process in one step, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim.lr_scheduler import LRScheduler

from hmt.atomic import atomic_file
from hmt.model import losses
from hmt.pretrained import first_line
from hmt.text.batches import Batch
from hmt.training.launch import uses_deepspeed
from hmt.training.options import TrainOptions

MAX_SKIPPED = 20
"""Consecutive steps whose scaled gradient may overflow before the run stops."""


@dataclass(frozen=True)
class StepResult:
    """Figures of a step.

    Attributes:
        loss: Mean nats per scored target, over all processes.
        retrieval_loss: Mean nats of recalling a supporting segment; None if the samples do not name any.
        grad_norm: Norm of the gradient before clipping.
        learning_rates: Learning rate of each group of parameters, by name.
    """

    loss: float
    retrieval_loss: float | None
    grad_norm: float
    learning_rates: dict[str, float]


class Stepper:
    """Takes optimizer steps.

    Args:
        accelerator: Accelerator of the run.
        model: Model as the accelerator prepared it.
        optimizer: Optimizer as the accelerator prepared it.
        scheduler: Schedule of the optimizer, not prepared: it advances once per optimizer step.
        options: Options of the run.

    Attributes:
        fresh_tokens: Tokens of a segment; None with dynamic reading, where segments differ.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        options: TrainOptions,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        config = accelerator.unwrap_model(model).config
        self.fresh_tokens = None if config.speed_tokens else config.fresh_tokens
        self._accelerator = accelerator
        self._options = options
        beside = losses.RETRIEVAL_LOSS_WEIGHT
        self._weights = torch.tensor([1.0, beside, beside], device=accelerator.device)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._skipped = 0

    def take(self, batch: Batch, targets: int) -> StepResult:
        """Take a step.

        Args:
            batch: Samples of this process.
            targets: Scored targets of all processes in this step.

        Raises:
            FloatingPointError: If loss or gradient are not finite; the step is not taken, the batch is kept in a file.
            ValueError: If the device runs out of memory; names the flags to lower.
        """
        accelerator = self._accelerator
        try:
            sums = self._backward(batch, targets)
        except RuntimeError as error:
            raise _out_of_memory(error) from error
        norm = float(accelerator.clip_grad_norm_(self._trained, self._options.max_grad_norm) or 0.0)
        loss, retrieval, _ = (accelerator.reduce(sums, reduction="sum") / targets).tolist()
        self._check(loss, norm, batch)
        rates = {str(group["name"]): float(group["lr"]) for group in self.optimizer.param_groups}
        try:
            self.optimizer.step()
        except RuntimeError as error:  # the first step allocates the moments
            raise _out_of_memory(error) from error
        self.optimizer.zero_grad(set_to_none=True)
        if accelerator.optimizer_step_was_skipped:  # the scaled gradient overflowed
            self._skipped += 1
        else:
            self._skipped = 0
            self.scheduler.step()
        return StepResult(
            loss=loss,
            retrieval_loss=None if batch.supporting is None else retrieval,
            grad_norm=norm,
            learning_rates=rates,
        )

    def _backward(self, batch: Batch, targets: int) -> Tensor:
        """Accumulate the gradients of the micro-steps; returns the sums (3,) of this process, see `_nats`."""
        accelerator = self._accelerator
        parts = batch.split(self._options.batch_size)
        accelerator.gradient_accumulation_steps, accelerator.step = len(parts), 0
        sums: Tensor = torch.zeros(3, device=accelerator.device)
        for part in parts:
            with accelerator.accumulate(self.model):
                nats = self._nats(part)
                sums += nats.detach()
                share = nats @ self._weights
                if uses_deepspeed(accelerator):  # which steps within backward
                    self._check(float(accelerator.reduce(share.detach(), reduction="sum")), 0.0, batch)
                # Processes are averaged and micro-steps divided by their number: both are undone here.
                with record_function("hmt.backward"):
                    accelerator.backward(share / targets * accelerator.num_processes * len(parts))
        return sums

    def _nats(self, part: Batch) -> Tensor:
        """Sum nats, retrieval loss and retention loss over the scored targets of some samples, (3,)."""
        device = self._accelerator.device
        output = self.model(
            part.input_ids.to(device),
            attention_mask=part.attention_mask.to(device),
            labels=part.labels.to(device),
            loss_tokens=self._options.loss_tokens,
            truncate_every=self._options.truncate_every,
            supporting=part.supporting,
            return_logits=False,
        )
        nats = output.nll.sum()
        count = output.scored_mask.sum()
        beside = [output.retrieval_loss, output.retention_loss]
        return torch.stack([nats, *(torch.zeros_like(nats) if loss is None else loss * count for loss in beside)])

    def _check(self, loss: float, norm: float, batch: Batch) -> None:
        """Stop at a loss or gradient that is not finite, unless the loss scale may be the reason."""
        scaled = self._accelerator.scaler is not None and self._skipped < MAX_SKIPPED
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        self.optimizer.zero_grad(set_to_none=True)
        path = self._options.record / f"bad_batch-{self._accelerator.process_index}.safetensors"
        tensors = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        with atomic_file(path) as file:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        finite = math.isfinite(loss)
        reason = f"the gradient's norm is {norm} at a loss of {loss:.3f}" if finite else f"the loss is {loss}"
        taken = "taken" if uses_deepspeed(self._accelerator) and finite else "not taken"  # it steps within backward
        raise FloatingPointError(
            f"{reason}; the step was {taken}, its batch is in {path}: lower --memory_learning_rate or --learning_rate, "
            "or use --dtype float32"
        )


def _out_of_memory(error: RuntimeError) -> ValueError:
    """Turn an out-of-memory error into advice; raise any other again."""
    if not should_reduce_batch_size(error):
        raise error
    return ValueError(
        "out of memory: lower --batch_size, --bptt_depth or --segment_length, or give --gradient_checkpointing "
        f"({first_line(error)})"
    )
