"""`hmt demo`: score the untrained memory, train it for two minutes, score it again, and draw the picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from hmt.atomic import atomic_file
from hmt.cli import evaluate
from hmt.evaluation.options import DemoOptions, EvaluateOptions
from hmt.model.loading import load
from hmt.options import parse_counts
from hmt.report import check_installed
from hmt.report.data import Material, add_figures
from hmt.report.publish import PAGE, write_report
from hmt.text.batches import tokenize
from hmt.text.tasks import load_documents
from hmt.training.loop import Training
from hmt.training.options import TrainOptions

COLUMNS = {"series": "memory"} | evaluate.COLUMNS
ROWS = "backbone,rmt,short_term,hmt"
ENDLESS = 1_000_000


def run(options: DemoOptions) -> tuple[dict[str, Any], str]:
    """Run the whole story.

    Returns:
        All figures, and the closing text with the table and where the report is.
    """
    check_installed()
    shared: dict[str, Any] = {
        "model_name": options.model_name,
        "task_name": options.task_name,
        "seed": options.seed,
        "dtype": "bfloat16",
        "sensory": "reread",  # with a cache there is nothing to train
        "num_recalled_tokens": 0,
    }
    scoring = EvaluateOptions(
        **shared,
        lengths=options.lengths,
        modes=ROWS,
        max_documents=options.max_documents,
        target_tokens=3 * parse_counts(options.lengths)[0] // 4,
    )
    scoring.check()
    training = TrainOptions(
        **shared,
        batch_size=1,
        max_minutes=options.train_minutes,
        stage_1_step=ENDLESS // 3,
        training_step=ENDLESS,
        save_ckpt=options.out / "checkpoint",
    )
    model, tokenizer = load(scoring, memory_seed=options.seed)
    num_embeddings = len(model.embedding_table)
    test = tokenize(load_documents(options.task_name, "test"), tokenizer, num_embeddings)
    before = evaluate.evaluate_rows(model, tokenizer, test, scoring)
    learn = tokenize(load_documents(options.task_name, "train"), tokenizer, num_embeddings)
    run = Training(model, training, tokenizer, keep=False)
    fitted = run.run(learn)
    run.save()
    after = evaluate.evaluate_rows(model, tokenizer, test, scoring)

    # Training leaves the frozen backbone alone: its row stands once.
    rows = [{"series": "untrained", **row} for row in before["rows"]]
    rows += [{"series": "trained", **row} for row in after["rows"] if row["row"] != "backbone"]
    figures = {"options": asdict(options), "spans": before["spans"], "rows": rows, "training": fitted}
    with atomic_file(options.out / "results.json") as file:
        file.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    title = f"{options.model_name} on {options.task_name}, window {scoring.window}"
    material = Material()
    add_figures(material, "results", figures)
    write_report(title, material, options.out)
    closing = (
        f"{evaluate.describe(before)}\n{evaluate.table(rows, COLUMNS)}\n"
        f"trained {fitted['trainable_parameters']:,} parameters for {fitted['steps']} steps and {fitted['tokens']:,} "
        f"tokens in {fitted['seconds']:.0f} s; the backbone was frozen\n"
        f"report in {options.out}: {PAGE}, perplexity.png, results.json, checkpoint"
    )
    return figures, closing
