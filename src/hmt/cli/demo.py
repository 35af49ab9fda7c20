"""`hmt demo`: score the untrained memory, train it for two minutes, score it again, and draw the picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file, check_output_directory
from hmt.options import OutputOptions, check_positive, parse_counts

ROWS = "backbone,rmt,short_term,hmt"


@dataclass(kw_only=True)
class DemoOptions(OutputOptions):
    """The whole story in a few minutes: score, train the memory, score again, draw the picture."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    task_name: str = "stdlib"
    """Text."""
    lengths: str = "1k,2k,4k"
    """Context lengths in tokens."""
    training_step: int = 40
    """Optimizer steps of each of the two stages."""
    max_documents: int = 2
    """Documents scored."""
    out: Path = Path("report")
    """Directory of the report."""
    seed: int = 0
    """Random seed."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "training_step", "max_documents")
        parse_counts(self.lengths)

    def check_outputs(self) -> None:
        """Raise an OSError if the checkpoint cannot be written."""
        check_output_directory(self.out / "checkpoint")


def run(options: DemoOptions) -> tuple[dict[str, Any], str]:
    """Run the whole story.

    Returns:
        All figures, and the closing text with the table and where the report is.
    """
    from hmt.cli import evaluate
    from hmt.evaluation.options import EvaluateOptions
    from hmt.model.loading import load
    from hmt.report import check_installed
    from hmt.report.data import Material, add_figures
    from hmt.report.publish import PAGE, write_report
    from hmt.text.batches import tokenize
    from hmt.text.tasks import load_documents
    from hmt.training.loop import Training
    from hmt.training.options import TrainOptions

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
        stage_1_step=options.training_step,
        training_step=options.training_step,
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
        f"{evaluate.describe(before)}\n{evaluate.table(rows, {'series': 'memory'} | evaluate.COLUMNS)}\n"
        f"trained {fitted['trainable_parameters']:,} parameters for {fitted['steps']} steps and {fitted['tokens']:,} "
        f"tokens in {fitted['seconds']:.0f} s; the backbone was frozen\n"
        f"report in {options.out}: {PAGE}, perplexity.png, results.json, checkpoint"
    )
    return figures, closing
