"""`hmt demo`: remember a long text, ask what lies far back, and draw quality and cost against length."""

from __future__ import annotations

import json
import math
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_file
from hmt.evaluation.options import DemoOptions
from hmt.memory.state import MemoryState
from hmt.model.loading import load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import ModelOptions, parse_counts
from hmt.report import check_installed
from hmt.report.table import format_table
from hmt.terminal import escaped

MODULES = ("shlex", "random", "fractions", "textwrap", "poplib", "statistics")
"""Modules of the standard library that the text is made of; the questions are about all but the last."""

PART_TOKENS = 2048
"""Tokens read between two updates of the progress bar."""

SCORED_TOKENS = 512
"""Last tokens of the text whose perplexity is measured, or half of the shortest length."""

ANSWER_TOKENS = 16
"""Maximum number of tokens generated for an answer."""

SHOWN_LINES = 3
"""Lines of a recalled passage that are shown."""

FULL, SLIDING, HMT = "full attention", "sliding window", "hmt"
"""Methods of the comparison."""

COLUMNS = {
    "row": "method",
    "context_tokens": "tokens",
    "ppl": "perplexity",
    "seconds": "seconds to read",
    "held_mb": "MB kept",
}
"""Columns of the closing table."""


@dataclass(frozen=True)
class Question:
    """A text to continue, and what the continuation must contain to be right."""

    prompt: str
    answer: str


QUESTIONS = (
    Question("The POSIX compliance and split() of shlex were written by", "Gustavo Niemeyer"),
    Question("The period of the Mersenne Twister core generator is", "2**19937"),
    Question("The fractions module was originally contributed by", "Sjoerd Mullender"),
    Question("The textwrap module was written by", "Greg Ward"),
    Question("Question: Which port does POP3 over SSL use?\nAnswer:", "995"),
)


def run(options: DemoOptions) -> tuple[dict[str, Any], str]:
    """Remember, ask, compare, draw.

    Returns:
        The figures, and the closing table with the commands to go on with.

    Raises:
        ImportError: If the extra `report` is not installed.
        OSError: If the model or the standard library's sources are missing.
        ValueError: If the text is shorter than the longest of `lengths`.
    """
    check_installed()
    from hmt.report.drawing import save

    model, tokenizer = load(ModelOptions(model_name=options.model_name))
    text = standard_library(tokenizer, options.text_tokens).to(model.device)
    lengths = parse_counts(options.lengths)
    if lengths[-1] > text.shape[1]:
        raise ValueError(f"lengths must be at most the {text.shape[1]:,} tokens of the text, got {options.lengths}")
    memory, seconds = remember(model, text)
    memory_file = options.out / "stdlib.memory"
    memory.save(memory_file)
    _say(f"read {text.shape[1]:,} tokens of Python's standard library in {seconds:.0f} s; the memory is saved in "
         f"{memory_file} ({memory_file.stat().st_size / 1e3:.0f} kB)")  # fmt: skip
    answers = [ask(model, tokenizer, memory, question) for question in QUESTIONS]
    with_memory, without = (sum(one[key] for one in answers) for key in ("right", "right_without"))
    _say(f"\n{with_memory} of {len(answers)} right with the memory, {without} without\n")

    rows = list(compare(model, text, lengths))
    rows.append({"row": HMT, "context_tokens": text.shape[1], "ppl": None, "seconds": seconds,
                 "held_mb": memory.nbytes / 1e6})  # fmt: skip
    figures = {"options": asdict(options), "questions": answers, "rows": rows}
    with atomic_file(options.out / "results.json") as file:
        file.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    picture = options.out / "demo.png"
    save(panels(rows), picture, columns=3)
    return figures, f"{format_table(rows, COLUMNS)}\n\n{_next_steps(picture, memory_file)}"


def standard_library(tokenizer: PreTrainedTokenizerBase, tokens: int) -> Tensor:
    """Read the beginning of the modules' sources, each under its name, as token ids (1, T)."""
    folder = Path(sysconfig.get_path("stdlib"))
    sources = (f"# {name}.py\n{(folder / f'{name}.py').read_text(encoding='utf-8')}" for name in MODULES)
    return tokenizer("".join(sources), return_tensors="pt").input_ids[:, :tokens]


def remember(model: HMTForCausalLM, text: Tensor) -> tuple[MemoryState, float]:
    """Read a text (1, T) with a progress bar; return its memory and the seconds that took."""
    memory = None
    started = time.perf_counter()
    with tqdm(desc="reading", total=text.shape[1], unit="tok", unit_scale=True, disable=None) as bar:
        for part in text.split(PART_TOKENS, dim=1):
            memory = model.remember(part, memory)
            bar.update(part.shape[1])
    assert memory is not None
    return memory, time.perf_counter() - started


def ask(
    model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase, memory: MemoryState, question: Question
) -> dict[str, Any]:
    """Continue a prompt with and without the memory, and show both answers and the recalled passage."""
    prompt = tokenizer(f"\n\n{question.prompt}", return_tensors="pt").input_ids.to(model.device)
    settings: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(prompt, memory=memory, output_recall=True, **settings)
    alone = model.generate(prompt, **settings)
    answer, without = (
        tokenizer.decode(one.sequences[0, prompt.shape[1] :], skip_special_tokens=True).strip().split("\n")[0]
        for one in (out, alone)
    )
    passages = [tokenizer.decode(passage.ids) for passage in out.recall.passages]
    back = [int(memory.tokens_read[0]) - passage.start for passage in out.recall.passages]
    found = {
        "prompt": question.prompt, "expected": question.answer, "answer": answer, "without": without,
        "right": question.answer in answer, "right_without": question.answer in without,
        "passages": passages, "tokens_back": back,
    }  # fmt: skip
    mark = {True: "right", False: "wrong"}
    _say(f"\n{question.prompt}")
    _say(f"  without memory: {without}  [{mark[found['right_without']]}]")
    _say(f"  with memory:    {answer}  [{mark[found['right']]}]")
    for passage, tokens in zip(passages, back, strict=True):
        _say(f"  recalled from {tokens:,} tokens back:")
        _say("\n".join(f"    | {line}" for line in _lines_around(passage, question.answer)))
    return found


def _lines_around(passage: str, answer: str) -> list[str]:
    """Choose the lines of a passage around the one with the answer, or its first ones."""
    lines = [line for line in passage.splitlines() if line.strip()]
    place = next((number for number, line in enumerate(lines) if answer in line), 0)
    first = max(place - SHOWN_LINES // 2, 0)
    return lines[first : first + SHOWN_LINES]


@torch.no_grad()
def compare(model: HMTForCausalLM, text: Tensor, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """Score the last tokens of a text under each method, at each context length.

    Yields:
        `row`, `context_tokens`, `ppl`, `seconds` to read the context, and `held_mb` kept afterwards.
    """
    targets = min(SCORED_TOKENS, lengths[0] // 2)
    started = time.perf_counter()
    nats, cache = _sliding_nats(model.backbone, text, targets, model.config.window)
    seconds_per_token = (time.perf_counter() - started) / targets
    for length in tqdm(lengths, desc="comparing", unit="length", disable=None):
        yield _row(SLIDING, length, nats / targets, length * seconds_per_token, _bytes(cache))
        context = text[:, -length:]
        started = time.perf_counter()
        full_nats, full_cache = _score(model.backbone, context, targets)
        yield _row(FULL, length, full_nats / targets, time.perf_counter() - started, _bytes(full_cache))
        started = time.perf_counter()
        out = model(context, labels=context, loss_tokens=targets, return_logits=False)
        yield _row(HMT, length, float(out.loss), time.perf_counter() - started, out.memory.nbytes)


def _sliding_nats(backbone: Any, text: Tensor, targets: int, window: int) -> tuple[float, Any]:
    """Sum the nats of the last tokens in a window that is re-encoded every half window, and return its last cache.

    Each target has at least half a window before it, whatever the length of the text.
    """
    nats, cache = 0.0, None
    for first in range(0, targets, window // 2):
        scored = min(window // 2, targets - first)
        end = text.shape[1] - targets + first + scored
        more, cache = _score(backbone, text[:, max(end - window, 0) : end], scored)
        nats += more
    return nats, cache


def _score(backbone: Any, ids: Tensor, targets: int) -> tuple[float, Any]:
    """Sum the nats of the last tokens of a text (1, T) under a plain backbone; return its cache too."""
    out = backbone(ids, logits_to_keep=targets + 1, use_cache=True)
    logits = out.logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, -targets:], reduction="sum")), out.past_key_values


def _bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _row(name: str, length: int, loss: float, seconds: float, held: int) -> dict[str, Any]:
    return {
        "row": name, "context_tokens": length, "ppl": math.exp(loss), "seconds": seconds, "held_mb": held / 1e6,
    }  # fmt: skip


def panels(rows: list[dict[str, Any]]) -> list[Any]:
    """Draw perplexity, time and memory against length."""
    from hmt.report.charts import Measure, against_length

    measures = (
        Measure("ppl", "Perplexity: lower is better", "perplexity", ""),
        Measure("seconds", "Time to read the text", "seconds", "", log=True),
        Measure("held_mb", "Kept after reading", "megabytes", "", log=True),
    )
    return [panel for measure in measures for panel in against_length(measure.key, measure)({"rows": rows})]


def _next_steps(picture: Path, memory: Path) -> str:
    prompt = QUESTIONS[0].prompt
    return (
        f"The picture is {picture}. Go on with\n"
        f'  hmt generate --memory {memory} --prompt "{prompt}" --explain\n'
        f"  hmt chat --memory {memory}\n"
        "  hmt remember book.txt --out book.memory     # a text of your own\n"
        "  hmt train --help                            # train a memory, as in the HMT paper"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{escaped(text)}\n")
    sys.stdout.flush()
