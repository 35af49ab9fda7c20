"""Can a memory answer from text that has left the window? Needles and key-value pairs in books, with controls.

Each trial hides something in a book, reads the book, and asks for it. Every row has the same window W:

    recall      passages found by text recall, behind the sinks
    direct      the same passages as ordinary tokens directly before the question
    bm25        the same budget of tokens found by BM25 (bm25s), directly before the question
    oracle      the passage that holds the answer, behind the sinks: the ceiling
    random      passages from anywhere, behind the sinks
    sinks       nothing recalled (StreamingLLM)
    absent      recall where the text does not hold the answer: how often the answer comes up anyway
    full        full attention, where the text fits the positions of the backbone

    python benchmarks/recall.py --books DIR --lengths 2k,8k,32k --trials 50 --json FILE
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from hmt.memory.passages import Passage
from hmt.metrics.environment import commit, environment
from hmt.options import parse_counts
from hmt.pretrained import load_tokenizer

NAMES = (
    "Anna Boris Clara David Edith Felix Greta Henry Irene Jonas Karla Louis Marta Niels Olivia Peter Quirin Rosa Simon "
    "Tilda Ulrich Vera Walter Xenia Yvonne Zachary"
).split()
NEW_TOKENS = 10


@dataclass(frozen=True)
class Trial:
    """A text with something hidden in it, and the question.

    Attributes:
        ids: Token ids of the text, (T,).
        start: First token of what answers the question.
        end: One past its last token.
        question: Token ids, (J,).
        answer: Its text.
    """

    ids: Tensor
    start: int
    end: int
    question: Tensor
    answer: str


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

    def trial(self, task: str, length: int) -> Trial:
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

    def _hidden(self, book: Tensor, told: list[Tensor], asked: int, question: str, answer: str) -> Trial:
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
        return Trial(torch.cat(parts), start, start + len(told[asked]), self._encode(question), answer)


class Rows:
    """Answers trials in every row.

    Args:
        model: With a rolling cache and text recall.
        tokenizer: Of the model.
        trials: Of one length and task.
    """

    def __init__(self, model: HMTForCausalLM, tokenizer: Any, trials: list[Trial]) -> None:
        self.model = model
        self.trials = trials
        config = model.config
        self._tokenizer = tokenizer
        self._budget = config.recalled_tokens
        self._quiet = model.variant(
            num_recalled_tokens=0, num_sensory=config.sensory_tokens, segment_length=config.window
        )
        self._state: MemoryState | None = None
        self.seconds = 0.0

    def read(self) -> None:
        """Read the texts of all trials."""
        started = time.perf_counter()
        ids = torch.stack([trial.ids for trial in self.trials])
        self._state = self.model.remember(ids)
        self.seconds = time.perf_counter() - started

    @torch.no_grad()
    def answers(self, row: str) -> list[bool]:
        """Right answers of the trials in a row, all asked side by side."""
        assert self._state is not None
        trials, state, model = self.trials, self._state, self._quiet
        prompts = [trial.question for trial in trials]
        if row in ("recall", "absent"):
            model = self.model
        if row == "absent":  # the question about the next trial's text
            trials = [*trials[1:], trials[0]]
            prompts = [trial.question for trial in trials]
        elif row == "full":
            length = max(len(trial.ids) + len(trial.question) for trial in trials) + NEW_TOKENS + 1
            model = self.model.variant(mode="backbone", num_sinks=0, num_sensory=length, segment_length=None)
            size = max(1, 100_000 // length)
            texts = [torch.cat([trial.ids, trial.question]) for trial in trials]
            groups = [(texts[at : at + size], trials[at : at + size]) for at in range(0, len(trials), size)]
            return [right for told, group in groups for right in self._asked(model, told, None, group)]
        elif row == "direct":
            found = [self.model._passages(state, number, trial.question) for number, trial in enumerate(trials)]
            prompts = [torch.cat([*(p.ids for p in told), asked]) for told, asked in zip(found, prompts, strict=True)]
        elif row == "bm25":
            prompts = [torch.cat([self._bm25(trial), trial.question]) for trial in trials]
        elif row in ("oracle", "random"):
            runs = [self._around(trial) if row == "oracle" else self._anywhere(trial) for trial in trials]
            found = [
                [Passage(number, start, trials[number].ids[start:end], 0.0) for start, end in own]
                for number, own in enumerate(runs)
            ]
            state = self.model._with_passages(state, found)
        return self._asked(model, prompts, state, trials)

    def _asked(
        self, model: HMTForCausalLM, prompts: list[Tensor], state: MemoryState | None, trials: list[Trial]
    ) -> list[bool]:
        width = max(map(len, prompts))
        ids = torch.stack([torch.nn.functional.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
        mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts])
        written = model.generate(
            ids.to(model.device), attention_mask=mask, memory=state, max_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert isinstance(written, Tensor)
        texts = [self._tokenizer.decode(row[width:].tolist()).replace(" ", "") for row in written]
        return [trial.answer in text for trial, text in zip(trials, texts, strict=True)]

    def _around(self, trial: Trial) -> list[tuple[int, int]]:
        spare = self._budget - (trial.end - trial.start)
        start = max(min(trial.start - spare // 2, len(trial.ids) - self._budget), 0)
        return [(start, start + self._budget)]

    def _anywhere(self, trial: Trial) -> list[tuple[int, int]]:
        half = self._budget // 2
        generator = random.Random(trial.answer)
        starts = sorted(generator.randrange(len(trial.ids) - half) for _ in range(2))
        return [(start, start + half) for start in starts]

    def _bm25(self, trial: Trial) -> Tensor:
        import bm25s

        size = self._budget // 2
        chunks = [trial.ids[start : start + size] for start in range(0, len(trial.ids), size)]
        texts = [self._tokenizer.decode(chunk.tolist()) for chunk in chunks]
        index = bm25s.BM25()
        index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        query = bm25s.tokenize([self._tokenizer.decode(trial.question.tolist())], show_progress=False)
        best, _ = index.retrieve(query, k=min(2, len(chunks)), show_progress=False)
        return torch.cat([chunks[number] for number in sorted(best[0].tolist())])


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
            rows.read()
            positions = model.backbone.config.max_position_embeddings
            for row in options.rows.split(","):
                if row == "full" and (length + 64 > positions or length > options.full_up_to):
                    continue
                started = time.perf_counter()
                right = rows.answers(row)
                table.append(
                    {
                        "task": task, "length": length, "row": row, "right": sum(right), "trials": count,
                        "read_seconds": round(rows.seconds, 2),
                        "answer_seconds": round((time.perf_counter() - started) / count, 3),
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
    parser.add_argument("--rows", default="recall,direct,bm25,oracle,random,sinks,absent,full")
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
