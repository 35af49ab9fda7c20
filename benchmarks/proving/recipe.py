"""The recipe: how a small model is made and trained so that it comes to use its memory.

Shape legend: B rows, S segments, L tokens of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hmt import HMTForCausalLM
from proving.tasks import BOS, PAD, SEGMENT_TOKENS, VOCABULARY, Sample, Task


@dataclass(frozen=True)
class Recipe:
    """What the model is and how it is trained; the defaults are what was found to work."""

    layers: int = 2
    """Layers of the backbone."""
    width: int = 64
    """Its width."""
    initializer_range: float = 0.1
    """Spread of its random weights. transformers' 0.02 is made for widths near 1,000 and too small for 64."""
    num_sensory: int = 2
    """Sensory tokens."""
    memory_injection: str = "gated"
    """How a recalled embedding becomes a prompt."""
    memory_gain: float = 1.0
    """Starting share of the recalled embedding in the prompt."""
    retrieval_weight: float = 1.0
    """Of the retrieval loss beside the answers' loss, and of the retention loss of a policy that learns."""
    pairs: int = 32
    """Pairs of segments, a fact and its question, read beside the texts of nine in every step of stage 2."""
    stage_1_steps: int = 0
    """Steps on pairs of segments, a fact and its question, before texts of nine."""
    batch_size: int = 32
    """Texts a step."""
    learning_rate: float = 4e-3
    """Of all parameters; rises over the first steps, falls to a twentieth over the second half of stage 2."""
    warmup_steps: int = 50
    """Steps until the learning rate is reached."""


def make_model(task: Task, mode: str, seed: int, recipe: Recipe, **fields: Any) -> HMTForCausalLM:
    """A Llama of random weights with a memory around it. Every mode reads segments of the same fresh tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=recipe.width, intermediate_size=2 * recipe.width,
        num_hidden_layers=recipe.layers, num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
        initializer_range=recipe.initializer_range, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "mode": mode,
        "sensory": "reread",
        "num_recalled_tokens": 0,
        "segment_length": SEGMENT_TOKENS + 2 + (0 if mode == "rmt" else recipe.num_sensory),
        "num_sensory": recipe.num_sensory,
        "sum_fraction": task.question_tokens / SEGMENT_TOKENS,
        "mem_recall_hidden_dim": recipe.width,
        "mem_recall_context": 4096,
        "memory_injection": recipe.memory_injection,
        "memory_gain": recipe.memory_gain,
    }
    return HMTForCausalLM.from_backbone(LlamaForCausalLM(config), **settings | fields)


def train(model: HMTForCausalLM, task: Task, seed: int, recipe: Recipe, steps: int) -> Iterator[dict[str, float]]:
    """Train a model in place; gives loss, retrieval loss and accuracy of each step, on texts that are new to it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(recipe.stage_1_steps + steps):
        stage_2 = step - recipe.stage_1_steps
        rise, fall = min((step + 1) / recipe.warmup_steps, 1.0), min(2 * (1 - stage_2 / steps), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rise * max(fall, 0.05)
        if stage_2 < 0:
            figures = learn(model, task.pair(generator, recipe.batch_size), recipe)
        else:
            figures = learn(model, task.sample(generator, recipe.batch_size), recipe)
            if recipe.pairs:
                learn(model, task.pair(generator, recipe.pairs), recipe)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield figures
    model.eval()


def learn(model: HMTForCausalLM, sample: Sample, recipe: Recipe) -> dict[str, float]:
    """Add the gradients of some texts.

    Returns:
        Mean nats of the answers, retrieval loss, and the share of answers given with more than half the probability.
    """
    output = model(
        sample.ids.flatten(1),
        labels=sample.labels.flatten(1),
        supporting=sample.supporting,
        retrieval_loss_weight=recipe.retrieval_weight,
        return_logits=False,
    )
    output.loss.backward()
    nats = output.nll[output.scored_mask].detach()
    retrieval = 0.0 if output.retrieval_loss is None else output.retrieval_loss.item()
    right = (nats < math.log(2)).float().mean().item()  # more than half of the probability
    return {"loss": nats.mean().item(), "retrieval": retrieval, "accuracy": right}
