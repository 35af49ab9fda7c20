"""`hmt demo`: remember a long text, ask what lies far back, and draw quality and cost against length."""

from __future__ import annotations

import json
import math
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt.atomic import atomic_file, check_output_file
from hmt.options import OutputOptions, check_positive, parse_counts
from hmt.terminal import ProgressBar, say

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from hmt.memory.state import MemoryState
    from hmt.model.modeling_hmt import HMTForCausalLM

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


@dataclass(kw_only=True)
class DemoOptions(OutputOptions):
    """Remember a long text, ask questions about it, and plot quality and cost (3 minutes)."""

    model_name: str = "smollm2-135m"
    """Backbone: a directory, a hub id or a built-in name."""
    text_tokens: int = 32_768
    """Number of tokens to remember, from the source code of Python's standard library."""
    lengths: str = "1k,2k,4k"
    """Context lengths to compare, in tokens, separated by commas; 1k is 1,024."""
    out: Path = Path("report")
    """Output directory: demo.png, results.json and stdlib.memory."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "text_tokens")
        lengths = parse_counts(self.lengths)
        if not lengths or lengths[0] < 2:
            raise ValueError(f"lengths must be numbers of tokens of at least 2, got {self.lengths!r}")

    def check_outputs(self) -> None:
        """Raise an OSError if the output directory cannot be written."""
        check_output_file(self.out / "demo.png")


def run(options: DemoOptions) -> tuple[dict[str, Any], str]:
    """Remember, ask, compare, draw.

    Returns:
        The figures, and the closing table with the commands to go on with.

    Raises:
        ImportError: If the extra `report` is not installed.
        OSError: If the model or the standard library's sources are missing.
        ValueError: If the text is shorter than the longest of `lengths`.
    """
    from hmt.model.loading import load
    from hmt.options import ModelOptions
    from hmt.report import check_installed
    from hmt.terminal import format_table

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
    say(f"read {text.shape[1]:,} tokens of Python's standard library in {seconds:.0f} s; the memory is saved in "
         f"{memory_file} ({memory_file.stat().st_size / 1e3:.0f} kB)")  # fmt: skip
    answers = [ask(model, tokenizer, memory, question) for question in QUESTIONS]
    with_memory, without = (sum(one[key] for one in answers) for key in ("right", "right_without"))
    say(f"\n{with_memory} of {len(answers)} right with the memory, {without} without\n")

    rows = compare(model, text, lengths)
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
    with ProgressBar("tokens", total=text.shape[1]) as bar:
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

    def answer(out: Any) -> str:
        text = str(tokenizer.decode(out.sequences[0, prompt.shape[1] :], skip_special_tokens=True))
        return text.strip().split("\n")[0]

    out: Any = model.generate(prompt, memory=memory, output_recall=True, **settings)
    with_memory, without = answer(out), answer(model.generate(prompt, **settings))
    passages = [str(tokenizer.decode(passage.ids)) for passage in out.recall.passages]
    back = [int(memory.tokens_read[0]) - passage.start for passage in out.recall.passages]
    right, right_without = question.answer in with_memory, question.answer in without
    say(f"\n{question.prompt}")
    say(f"  without memory: {without}  [{'right' if right_without else 'wrong'}]")
    say(f"  with memory:    {with_memory}  [{'right' if right else 'wrong'}]")
    for passage, tokens in zip(passages, back, strict=True):
        say(f"  recalled from {tokens:,} tokens back:")
        say("\n".join(f"    | {line}" for line in _lines_around(passage, question.answer)))
    return {
        "prompt": question.prompt,
        "expected": question.answer,
        "answer": with_memory,
        "without": without,
        "right": right,
        "right_without": right_without,
        "passages": passages,
        "tokens_back": back,
    }


def _lines_around(passage: str, answer: str) -> list[str]:
    """Choose the lines of a passage around the one with the answer, or its first ones."""
    lines = [line for line in passage.splitlines() if line.strip()]
    place = next((number for number, line in enumerate(lines) if answer in line), 0)
    first = max(place - SHOWN_LINES // 2, 0)
    return lines[first : first + SHOWN_LINES]


def compare(model: HMTForCausalLM, text: Tensor, lengths: list[int]) -> list[dict[str, Any]]:
    """Score the last tokens of a text under each method, at each context length.

    Returns:
        Rows with `row`, `context_tokens`, `ppl`, `seconds` to read the context, and `held_mb` kept afterwards.
    """
    import torch

    rows = []
    targets = min(SCORED_TOKENS, lengths[0] // 2)
    with ProgressBar("tokens", total=2 * sum(lengths) + targets) as bar, torch.no_grad():
        started = time.perf_counter()
        nats, cache = _sliding_nats(model.backbone, text, targets, model.config.window)
        seconds_per_token = (time.perf_counter() - started) / targets
        bar.update(targets)
        for length in lengths:
            context = text[:, -length:]
            started = time.perf_counter()
            full_nats, full_cache = _score(model.backbone, context, targets)
            rows.append(_row(FULL, length, full_nats / targets, time.perf_counter() - started, _bytes(full_cache)))
            rows.append(_row(SLIDING, length, nats / targets, length * seconds_per_token, _bytes(cache)))
            bar.update(length)
            started = time.perf_counter()
            out = model(context, labels=context, loss_tokens=targets, return_logits=False)
            rows.append(_row(HMT, length, float(out.loss), time.perf_counter() - started, out.memory.nbytes))
            bar.update(length)
    return rows


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
    from torch.nn.functional import cross_entropy

    out = backbone(ids, logits_to_keep=targets + 1, use_cache=True)
    logits = out.logits[0, :-1].float()
    return float(cross_entropy(logits, ids[0, -targets:], reduction="sum")), out.past_key_values


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
