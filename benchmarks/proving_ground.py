"""The proving ground: is what was said recalled, from how far back, and what is kept when the memory is full?

    python benchmarks/proving_ground.py
    python benchmarks/proving_ground.py --task recall --seeds 0 --distances 1,8,64

Small models with random weights are trained by one recipe (proving/recipe.py) on texts of nine segments, so that at
most eight lie between a fact and its question, and asked at distances up to 1,024 segments: docs/proving-ground.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import tyro
from environment import HERE, write
from proving.measure import accuracy_by_distance
from proving.picture import draw
from proving.recipe import Recipe, make_model, train
from proving.tasks import TASKS, Task
from tqdm import tqdm

from hmt.options import parse_counts
from hmt.report.table import format_table

SMALL_BANK = 8
SMALL = {"mem_recall_context": SMALL_BANK, "retention_protected": 2}
SMALL_BANK_DISTANCE = 256
"""The small bank is asked up to here: it has forgotten what it will forget."""
POLICIES = ("fifo", "usage", "merge")
"""Read with a model that was trained with room for everything; `attention` has to be trained."""


@dataclass
class Options:
    """What to run."""

    task: Literal["recall", "topic", "capacity", "all"] = "all"
    """Task."""
    seeds: str = "0,1,2"
    """A model each."""
    modes: str = "hmt,short_term,rmt"
    """What reads."""
    distances: str = "1,2,4,8,16,32,64,128,256,512,1024"
    """Segments from the last fact to the question."""
    rows: int = 64
    """Texts asked, two to four questions each."""
    steps: int | None = None
    """Optimizer steps instead of the task's own number."""
    recipe: Recipe = field(default_factory=Recipe)
    """How models are made and trained."""
    threads: int = 1
    """Of torch; the tensors are so small that more do not help."""
    keep: bool = False
    """Keep the runs that are in the file already, and add those it lacks."""
    name: str = "proving_ground"
    """Of the files under results/."""


def main(options: Options) -> None:
    """Train, ask, write, draw."""
    torch.set_num_threads(options.threads)
    path = HERE / "results" / f"{options.name}.json"
    before = json.loads(path.read_text()) if options.keep and path.exists() else {"runs": [], "rows": []}
    runs, rows = before["runs"], before["rows"]
    done = {(run["task"], run["mode"], run["policy"], run["seed"]) for run in runs}
    for task, seed, mode, policy in entrants(options):
        if (task.name, mode, policy, seed) not in done:
            run, found = prove(task, mode, policy, seed, options)
            runs.append(run)
            rows += found
            write(options.name, {"options": asdict(options), "runs": runs, "rows": rows})
    summary = summarise(rows)
    path = write(options.name, {"options": asdict(options), "summary": summary, "runs": runs, "rows": rows})
    draw(summary, path.with_suffix(".png"))
    distances = parse_counts(options.distances)
    heading = {"task": "task", "row": "reads"} | {str(distance): f"{distance:,}" for distance in distances}
    sys.stdout.write(f"{format_table(by_distance(summary), heading)}\nwritten to {path}\n")


def entrants(options: Options) -> Iterator[tuple[Task, int, str, str]]:
    """Task, seed, mode and retention policy of each model to train."""
    for seed in map(int, options.seeds.split(",")):
        for task in TASKS.values() if options.task == "all" else [TASKS[options.task]]:
            for mode in options.modes.split(","):
                yield task, seed, mode, "fifo"
                if mode == "hmt" and task.name == "capacity":
                    yield task, seed, mode, "attention"


def prove(
    task: Task, mode: str, policy: str, seed: int, options: Options
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train one model and ask it.

    Returns:
        Figures of its training, and a row for each way of reading and each distance.
    """
    steps = options.steps or task.steps
    model = make_model(task, mode, seed, options.recipe, memory_policy=policy)
    name = f"{task.name} {mode}{' ' + policy if policy != 'fifo' else ''} seed {seed}"
    history = []
    with tqdm(train(model, task, seed, options.recipe, steps), desc=name, total=steps, mininterval=5) as progress:
        for figures in progress:
            history.append(figures)
            progress.set_postfix(figures, refresh=False)
    run = {"task": task.name, "mode": mode, "policy": policy, "seed": seed, "steps": steps}
    run["curve"] = [mean(history[start : start + 50]) for start in range(0, steps, 50)]
    readings: dict[str, dict[str, Any]] = {mode: {}} if policy == "fifo" else {}
    if mode == "hmt" and task.name == "capacity":
        for kept in POLICIES if policy == "fifo" else (policy,):
            readings[f"bank of {SMALL_BANK}, {kept}"] = SMALL | {"memory_policy": kept}
    rows = []
    for row, fields in readings.items():
        reader = model.variant(**fields) if fields else model
        distances = [d for d in parse_counts(options.distances) if not fields or d <= SMALL_BANK_DISTANCE]
        for found in accuracy_by_distance(reader, task, seed, distances, options.rows):
            rows.append({"task": task.name, "row": row, "seed": seed} | found)
    return run, rows


def mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of figures of the same names."""
    return {name: round(statistics.fmean(one[name] for one in figures), 4) for name in figures[0]}


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, least and greatest over the seeds, for each task, way of reading and distance; shuffled memory likewise."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["row"], row["distance"]), []).append(row)
    summary = []
    for (task, name, distance), group in groups.items():
        for label, key in ((name, "accuracy"), (f"{name}, shuffled", "shuffled")):
            values = [row[key] for row in group]
            found = {"mean": statistics.fmean(values), "least": min(values), "greatest": max(values)}
            summary.append({"task": task, "row": label, "distance": distance} | found)
    return summary


def by_distance(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a task and way of reading, a column a distance, in percent."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in summary:
        line = lines.setdefault((row["task"], row["row"]), {"task": row["task"], "row": row["row"]})
        line[str(row["distance"])] = f"{100 * row['mean']:.1f}"
    return sorted(lines.values(), key=lambda line: list(TASKS).index(line["task"]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
