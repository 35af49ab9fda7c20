"""Can a memory answer from text that has left the window? Needles and key-value pairs in books, with controls.

Each trial hides something in a book, reads the book, and asks for it. The rows are those of `hmt evaluate`, all with
the same window W and the same budget of passages: recall, bm25, oracle (the ceiling), random, sinks, absent (recall
from a text without the answer) and full (full attention, where the text fits the positions of the backbone).

    python benchmarks/recall.py --books DIR --lengths 2k,8k,32k --trials 50 --json FILE
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from hmt.config import identity_settings
from hmt.evaluation.questions import QuestionReader
from hmt.evaluation.rows import ROWS
from hmt.metrics.machine import commit, environment
from hmt.options import parse_counts
from hmt.pretrained import load_tokenizer
from hmt.text.answers import TokenQuestion
from hmt.text.questions import Question

NAMES = (
    "Anna Boris Clara David Edith Felix Greta Henry Irene Jonas Karla Louis Marta Niels Olivia Peter Quirin Rosa Simon "
    "Tilda Ulrich Vera Walter Xenia Yvonne Zachary"
).split()
NEW_TOKENS = 10


class Maker:
    """Makes trials from books.

    Args:
        tokenizer: Of the model.
        books: Texts.
        seed: Random seed.
    """

    def __init__(self, tokenizer: Any, books: list[str], seed: int) -> None:
        self._encode = lambda text: torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        self._books = [self._encode(text) for text in books]
        self._random = random.Random(seed)

    def trial(self, task: str, length: int) -> TokenQuestion:
        """One trial of a task in a text of so many tokens."""
        book = self._running_text(length)
        if task == "needle":
            key = str(self._random.randrange(10_000, 100_000))
            told = [f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"]
            question, answer, asked = "\nWhat is the pass key? The pass key is", key, 0
        else:
            names = self._random.sample(NAMES, 16)
            codes = [str(self._random.randrange(10_000, 100_000)) for _ in names]
            told = [f"\nThe locker code of {name} is {code}.\n" for name, code in zip(names, codes, strict=True)]
            asked = self._random.randrange(16)
            question, answer = f"\nThe locker code of {names[asked]} is", codes[asked]
        return self._hidden(book, [self._encode(text) for text in told], asked, question, answer)

    def _running_text(self, length: int) -> Tensor:
        parts, count = [], 0
        while count < length:
            book = self._random.choice(self._books)
            parts.append(book[self._random.randrange(max(len(book) // 2, 1)) :])
            count += len(parts[-1])
        return torch.cat(parts)[:length]

    def _hidden(self, book: Tensor, told: list[Tensor], asked: int, prompt: str, answer: str) -> TokenQuestion:
        book = book[: len(book) - sum(map(len, told))]
        places = sorted(self._random.randrange(int(0.02 * len(book)), int(0.95 * len(book))) for _ in told)
        order = list(range(len(told)))
        self._random.shuffle(order)
        parts, before, start, count = [], 0, 0, 0
        for place, number in zip(places, order, strict=True):
            parts += [book[before:place], told[number]]
            count += place - before
            if number == asked:
                start = count
            count += len(told[number])
            before = place
        parts.append(book[before:])
        question = Question(name=answer, source="", context="", prompt=prompt, answers=(answer,))
        supporting = ((start, start + len(told[asked])),)
        return TokenQuestion(question, torch.cat(parts), self._encode(prompt), self._encode(answer), supporting)


class Rows:
    """Answers trials in every row.

    Args:
        model: With a rolling cache and text recall.
        tokenizer: Of the model.
        trials: Of one length and task.
    """

    def __init__(self, model: HMTForCausalLM, tokenizer: Any, trials: list[TokenQuestion]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._trials = trials
        self._states: dict[tuple[str, bool], MemoryState] = {}

    @torch.no_grad()
    def answers(self, row: str) -> tuple[list[bool], float]:
        """Right answers of the trials in a row, all asked side by side, and the seconds of reading."""
        longest = max(len(trial.shown) for trial in self._trials) + NEW_TOKENS + 1
        reader = QuestionReader(self._model, row, self._tokenizer, longest)
        if ROWS[row].windows:
            size = max(1, 100_000 // longest)
            groups = [self._trials[start : start + size] for start in range(0, len(self._trials), size)]
            prompts = [reader.prepare(None, group)[1] for group in groups]
            asked = [self._asked(reader, part, None, group) for group, part in zip(groups, prompts, strict=True)]
            return [right for part in asked for right in part], 0.0
        started = time.perf_counter()
        key = (identity_settings(reader.reading.config), row == "absent")  # rows of one geometry share what was read
        if key not in self._states:
            contexts = [reader.context(trial) for trial in self._trials]
            shortest = min(map(len, contexts))  # without the answer they may differ by a few tokens
            self._states[key] = reader.reading.remember(torch.stack([context[:shortest] for context in contexts]))
        seconds = time.perf_counter() - started
        state, prompts = reader.prepare(self._states[key], self._trials)
        return self._asked(reader, prompts, state, self._trials), seconds

    def _asked(
        self, reader: QuestionReader, prompts: list[Tensor], state: MemoryState | None, trials: list[TokenQuestion]
    ) -> list[bool]:
        width = max(map(len, prompts))
        ids = torch.stack([torch.nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
        mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts])
        written = reader.asking.generate(
            ids.to(self._model.device), attention_mask=mask, memory=state, max_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert isinstance(written, Tensor)
        texts = [self._tokenizer.decode(row[width:].tolist()).replace(" ", "") for row in written]
        return [trial.question.answers[0] in text for trial, text in zip(trials, texts, strict=True)]


def measure(
    model: HMTForCausalLM, tokenizer: Any, books: list[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The table: one entry for each task, length and row."""
    table = []
    for length in parse_counts(options.lengths):
        count = options.trials if length <= 200_000 else options.long_trials
        for task in options.tasks.split(","):
            maker = Maker(tokenizer, books, seed=options.seed + length)
            rows = Rows(model, tokenizer, [maker.trial(task, length) for _ in range(count)])
            positions = model.backbone.config.max_position_embeddings
            for row in options.rows.split(","):
                if row == "full" and (length + 64 > positions or length > options.full_up_to):
                    continue
                started = time.perf_counter()
                right, reading = rows.answers(row)
                table.append(
                    {
                        "task": task, "length": length, "row": row, "right": sum(right), "trials": count,
                        "read_seconds": round(reading, 2),
                        "answer_seconds": round((time.perf_counter() - started - reading) / count, 3),
                    }
                )  # fmt: skip
                sys.stdout.write(f"{json.dumps(table[-1])}\n")
                sys.stdout.flush()
    return table


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--books", type=Path, required=True, help="directory with .txt files")
    parser.add_argument("--lengths", default="2k,8k")
    parser.add_argument("--tasks", default="needle,keyvalue")
    parser.add_argument("--rows", default="recall,bm25,oracle,random,sinks,absent,full")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--long-trials", type=int, default=10, help="trials above 200,000 tokens")
    parser.add_argument("--full-up-to", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--recalled", type=int, default=None, help="budget E; default: a quarter of the window")
    parser.add_argument("--read-chunk", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = HMTForCausalLM.from_backbone(
        options.model, dtype=options.dtype, sensory="cache", segment_length=options.window,
        num_recalled_tokens=options.recalled, read_chunk_tokens=options.read_chunk, mem_recall_context=1 << 20,
    )  # fmt: skip
    model.to(options.device).eval()  # type: ignore[arg-type]
    model.use_tokenizer(tokenizer)
    books = [path.read_text() for path in sorted(options.books.glob("*.txt"))]
    table = measure(model, tokenizer, books, options)
    if options.json is not None:
        about = {"command": sys.argv, "commit": commit(), "environment": environment(), "window": options.window}
        options.json.write_text(json.dumps(about | {"rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
