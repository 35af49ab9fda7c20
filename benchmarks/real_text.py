"""Does a memory earn its place on real text? Trials on books, each beside plain sensory tokens of the same training.

    python benchmarks/real_text.py --train DIR --score DIR=validation DIR=test --trials sensory hmt
    python benchmarks/real_text.py --compare sensory

Every trial trains the same backbone on the same texts for as many tokens, with an adapter of the same size, and scores
the same targets of other books. All queries are of the text before a segment, so every target is causal. `--compare`
prints what was kept so far, each against the trial named.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from environment import HERE

from hmt.cli import train
from hmt.config import memory_fields
from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.targets import TargetScores
from hmt.metrics.environment import commit, environment
from hmt.metrics.intervals import difference_interval, difference_percent
from hmt.model.loading import load
from hmt.report.table import format_table
from hmt.text.batches import tokenize
from hmt.text.tasks import load_documents
from hmt.training.options import TrainOptions

EIGHT: dict[str, Any] = {"num_memory_tokens": 8, "memory_gain": 0.5, "recall_query": "previous"}
"""Eight memory embeddings a segment: 16 positions of the window, which plain sensory tokens get as well."""

ONE: dict[str, Any] = {"num_memory_tokens": 1, "memory_gain": 0.2, "recall_query": "previous", "num_sensory": 34}
"""One, with two of its 36 positions, and a share of the prompt that a backbone reads on with before it has learnt."""

CACHE: dict[str, Any] = {"sensory": "cache", "num_sensory": None}
"""A rolling cache that fills the window."""

TRIALS: dict[str, dict[str, Any]] = {
    "sensory": {"mode": "backbone", "num_sensory": 48},
    "sensory_36": {"mode": "backbone", "num_sensory": 36},
    "sensory_32": {"mode": "backbone", "num_sensory": 32},
    "short_term": {"mode": "short_term", **EIGHT},
    "rmt": {"mode": "rmt", "num_memory_tokens": 8, "memory_gain": 0.5},
    "hmt": EIGHT,
    "hmt_1": ONE,
    "window_512": {"mode": "backbone", "segment_length": 512, "num_sensory": 448},
    "window_1024": {"mode": "backbone", "segment_length": 1024, "num_sensory": 768},
    "cache": {"mode": "backbone", **CACHE},
    "cache_512": {"mode": "backbone", "segment_length": 512, **CACHE},
    "hmt_cache": {"num_memory_tokens": 1, **CACHE},
}
"""Names -> changes of the settings below."""

KEPT = ("row", "context_tokens", "ppl", "ppl_causal", "bits_per_byte", "tokens", "document_sums")
COLUMNS = {
    "trial": "trial",
    "text": "text",
    "seed": "seed",
    "row": "row",
    "context_tokens": "context",
    "ppl": "ppl",
    "change": "change %",
    "interval": "95%",
    "trained_tokens": "trained on",
    "seconds": "s",
}


@dataclass
class Options:
    """What to try."""

    trials: tuple[str, ...] = ()
    """Names, each as in TRIALS, or NAME:field=value,field=value for a change of it."""
    train: str = "stdlib"
    """Task or directory whose train split is learnt from."""
    score: tuple[str, ...] = ("stdlib=validation",)
    """What is scored, each as TASK=SPLIT."""
    tokens: int = 8_000_000
    """Tokens of training."""
    minutes: float = 60.0
    """A trial that is not done by then stops where it is, and says so."""
    batch_size: int = 32
    """Samples of a step."""
    seed: int = 0
    """Of the memory's first weights and the order of the samples."""
    lengths: str = "1k,4k"
    """Context lengths, the targets included."""
    target_tokens: int = 512
    """Tokens scored per span."""
    spans_per_document: int = 8
    """Spans of each document."""
    rows_at_once: int = 16
    """Spans scored side by side."""
    full: bool = True
    """Score the backbone in its own longest window, too."""
    device: str = "auto"
    """Where."""
    compile: bool = True
    """Compile the layers for training."""
    checkpoints: Path = Path("runs/real_text")
    """Where they are written."""
    kept: Path = HERE / "results" / "real_text.jsonl"
    """File that each trial adds its figures to."""
    compare: str | None = None
    """Print the trials of that file against this one."""


def main(options: Options) -> None:
    """Train and score the trials, or compare those there are."""
    for name in options.trials:
        figures = run_trial(options, name)
        with options.kept.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        sys.stdout.write(f"{format_table(flat([figures]), COLUMNS)}\n")
    if options.compare is not None:
        lines = [json.loads(line) for line in options.kept.read_text().splitlines()]
        sys.stdout.write(f"{format_table(compared(flat(lines), options.compare), COLUMNS)}\n")


def run_trial(options: Options, name: str) -> dict[str, Any]:
    """Train and score one."""
    settings = training_options(options, name)
    settings.check()
    started = time.monotonic()
    timer = threading.Timer(60 * options.minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    trained, line = train.run(settings)
    timer.cancel()
    seconds = time.monotonic() - started
    sys.stdout.write(f"{name}: {line}\n")
    return {
        "trial": name,
        "text": texts(options),
        "seed": options.seed,
        "trained_tokens": trained["tokens"],
        "steps": trained["steps"],
        "interrupted": trained["interrupted"],
        "losses": [trained["first_loss"], trained["last_loss"]],
        "seconds": seconds,
        "settings": TRIALS[name.partition(":")[0]] | changes(name),
        "commit": commit(),
        "environment": environment(),
        "rows": score(options, settings),
    }


def texts(options: Options) -> str:
    """What was learnt from and what was scored, without directories."""
    return " -> ".join([Path(options.train).name, *(Path(text).name for text in options.score)])


def changes(name: str) -> dict[str, Any]:
    """What a name adds to the trial it begins with."""
    _, _, pairs = name.partition(":")
    return {key: json.loads(value) for key, value in (pair.split("=") for pair in pairs.split(",") if pair)}


def training_options(options: Options, name: str) -> TrainOptions:
    """Of a trial: as many tokens as any other, to the step."""
    settings = TrainOptions(
        task_name=options.train,
        device=options.device,
        dtype="bfloat16",
        seed=options.seed,
        save_ckpt=options.checkpoints / re.sub(r"[^\w.]+", "-", f"{name}-{options.seed}"),
        segment_length=256,
        num_sensory=32,
        use_lora=True,
        lora_rank=32,
        lora_alpha=64,
        lora_dropout=0.0,
        learning_rate=5e-4,
        memory_learning_rate=1e-3,
        lr_schedule="cosine",
        warmup_step=20,
        bptt_depth=4,
        stage_1_step=0,
        batch_size=options.batch_size,
        compile=options.compile,
    )
    settings = replace(settings, **TRIALS[name.partition(":")[0]] | changes(name))
    step_tokens = settings.batch_size * settings.bptt_depth * settings.fresh_tokens
    return replace(settings, training_step=math.ceil(options.tokens / step_tokens))


def rows_of(trained: TrainOptions) -> list[str]:
    """The rows that a trial is scored in: as it was trained, and its controls."""
    if trained.mode == "hmt":
        return ["hmt_cache"] if trained.rolling else ["hmt", "hmt_shuffled", "hmt_uniform"]
    return ["sinks"] if trained.rolling and trained.mode == "backbone" else [trained.mode]


def score(options: Options, trained: TrainOptions) -> list[dict[str, Any]]:
    """Rows of the trained checkpoint, read with contexts of so many tokens."""
    model, tokenizer = load(replace(trained, load_from_ckpt=str(trained.save_ckpt)))
    rows = [*rows_of(trained), *(["full"] if options.full else [])]
    scoring = EvaluateOptions(
        lengths=options.lengths, modes=",".join(rows), target_tokens=options.target_tokens,
        batch_size=options.rows_at_once, spans_per_document=options.spans_per_document, **memory_fields(trained),
    )  # fmt: skip
    documents = [
        document
        for name, _, split in (text.rpartition("=") for text in options.score)
        for document in tokenize(load_documents(name, split), tokenizer, len(model.embedding_table))
    ]
    scores = TargetScores(documents, scoring, tokenizer)
    scores.measure(model, scoring.rows, None)
    return [{name: row[name] for name in KEPT} for row in scores.rows()]


def flat(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each row of each trial."""
    return [{**trial, **row} for trial in trials for row in trial["rows"]]


def compared(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Change in percent against the reference on the same targets and seed, with an interval over the documents."""

    def same(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("text", "tokens", "seed", "context_tokens"))

    theirs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["trial"] == reference:
            theirs.setdefault(same(row), row)  # its own row is its first
    for row in rows:
        other = theirs.get(same(row))
        if other is None or other is row:
            continue
        low, high = difference_interval(row["document_sums"], other["document_sums"])
        row["change"] = difference_percent(row["document_sums"], other["document_sums"])
        row["interval"] = f"{low:.1f} to {high:.1f}"
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
