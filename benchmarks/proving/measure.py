"""How often the answer is right, by the distance between the facts and the question.

Shape legend: B rows, Q questions, J tokens of a question, N bank slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from proving.tasks import Opening, Task

SEED = 1_000_000
"""Added to the seed of a run, so that it is never evaluated on what it was trained on."""


SHIFTS = (1, 2, 3, 4)
"""Shuffled memory is the bank of the text so many rows further, the mean over these."""


@torch.no_grad()
def accuracy_by_distance(
    model: HMTForCausalLM, task: Task, seed: int, distances: Sequence[int], rows: int
) -> list[dict[str, Any]]:
    """Ask the same questions after more and more distractors.

    A text is read once: the memory at one distance is where reading goes on to the next.

    Args:
        model: Trained.
        task: Draws the texts.
        seed: Of the run.
        distances: Segments from the last fact to the question, rising; 1 is the next segment. The fact that is asked
            for lies at this distance or further back.
        rows: Texts.

    Returns:
        For each distance: `accuracy`, `shuffled` (the bank is that of another text), and with recall `retrieved`
        (the supporting segment is recalled most) and `kept` (it is still in the bank).
    """
    model.eval()
    generator = torch.Generator().manual_seed(SEED + seed)
    opening = task.opening(generator, rows)
    state, at, results = model.remember(opening.ids.flatten(1)), 1, []
    for distance in distances:
        if distance > at:
            between = task.distractors(generator, opening, distance - at)
            state, at = model.remember(between.flatten(1), state), distance
        results.append({"distance": distance} | ask(model, opening, task.asked, state))
    return results


@torch.no_grad()
def ask(model: HMTForCausalLM, opening: Opening, count: int, state: MemoryState) -> dict[str, float]:
    """Figures of the first `count` questions, each asked of the same memory."""
    others = [replace(state, bank=state.bank.map(lambda values, n=n: values.roll(n, dims=0))) for n in SHIFTS]
    figures: dict[str, list[float]] = {}
    for number in range(count):
        question, answer = opening.questions[:, number], opening.answers[:, number]
        supporting = opening.supporting[:, number, None]
        output = model(question, memory=state, output_recall=True)
        found = {
            "accuracy": output.logits[:, -1].argmax(dim=-1) == answer,
            "shuffled": torch.stack([_answers(model, question, other) == answer for other in others]),
        }
        if output.recall.weights:
            strongest = output.recall.weights[0].mean(dim=1).argmax(dim=1, keepdim=True)
            found["retrieved"] = output.recall.segments[0].gather(1, strongest) == supporting
            found["kept"] = ((state.bank.segments == supporting) & state.bank.valid).any(dim=1)
        for name, right in found.items():
            figures.setdefault(name, []).append(right.float().mean().item())
    return {name: sum(values) / len(values) for name, values in figures.items()}


def _answers(model: HMTForCausalLM, question: Tensor, memory: MemoryState) -> Tensor:
    return model(question, memory=memory).logits[:, -1].argmax(dim=-1)
