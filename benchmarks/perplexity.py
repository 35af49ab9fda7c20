"""Perplexity side by side, untrained: published HMT, the rolling cache, and the backbone's full attention.

    python benchmarks/perplexity.py --texts DIR --windows 256,512 --lengths 4k,16k --json FILE

The same 1,024 targets of each text in every row and at every length; positions computed and bytes kept per token read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hmt import HMTForCausalLM
from hmt.cli.evaluate import evaluate_rows, table
from hmt.evaluation.options import EvaluateOptions
from hmt.metrics.machine import commit, environment
from hmt.pretrained import load_tokenizer
from hmt.text.batches import tokenize
from hmt.text.documents import Document


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=Path, required=True, help="directory with text files, a document each")
    parser.add_argument("--windows", default="256,512")
    parser.add_argument("--lengths", default="4k,16k")
    parser.add_argument("--rows", default="hmt,backbone,recompute,sliding,sinks,full")
    parser.add_argument("--targets", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    texts = [Document(path.name, path.read_text()) for path in sorted(options.texts.iterdir())]
    found: list[dict[str, Any]] = []
    for window in map(int, options.windows.split(",")):
        model = HMTForCausalLM.from_backbone(
            options.model, dtype=options.dtype, sensory="reread", segment_length=window, num_recalled_tokens=0
        )
        model.to(options.device).eval()  # type: ignore[arg-type]
        documents = tokenize(texts, tokenizer, len(model.embedding_table))
        settings = EvaluateOptions(
            sensory="reread", segment_length=window, num_recalled_tokens=0, lengths=options.lengths, modes=options.rows,
            target_tokens=options.targets, batch_size=options.batch_size, reference="hmt",
        )  # fmt: skip
        settings.check()
        rows = evaluate_rows(model, tokenizer, documents, settings)["rows"]
        for row in rows:
            row["window"] = window
        sys.stdout.write(f"window {window}\n{table(rows)}\n")
        sys.stdout.flush()
        found += rows
    if options.json is not None:
        about = {"command": sys.argv, "commit": commit(), "environment": environment()}
        options.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
