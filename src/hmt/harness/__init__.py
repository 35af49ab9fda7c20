"""lm-evaluation-harness with a model that has a memory; the options of `hmt harness`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.options import ModelOptions, OutputOptions, check_positive


def check_installed() -> None:
    """Make sure that the harness is there.

    Raises:
        ImportError: If it is not; names the extra.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError("tasks of lm-evaluation-harness need lm_eval, the extra lm-eval: pip install lm_eval")


@dataclass(kw_only=True)
class HarnessOptions(OutputOptions, ModelOptions):
    """Run tasks of lm-evaluation-harness (needs the extra lm-eval), with no text too long."""

    tasks: str
    """Tasks, groups or YAML files of the harness, with commas between them."""
    include_path: Path | None = None
    """Directory with YAML files of further tasks."""
    num_fewshot: int | None = None
    """Worked examples before each question; by default as the task has it."""
    limit: float | None = None
    """Use the first so many documents of each task, or below 1 such a share of them."""
    batch_size: int = 1
    """Rows read side by side."""
    metadata: str | None = None
    """Arguments of tasks that take some, as JSON: '{"max_seq_lengths": [4096, 8192]}' for ruler."""
    gen_kwargs: str | None = None
    """Settings of generation over those of the tasks: max_gen_toks=64,do_sample=true,temperature=0.8."""
    add_bos_token: bool | None = None
    """Begin texts with the BOS token, or do not; by default as the tokenizer does."""
    apply_chat_template: bool = False
    """Put questions into the tokenizer's chat template."""
    system_instruction: str | None = None
    """System message before each question."""
    fewshot_as_multiturn: bool = True
    """In a chat template, make each worked example a turn of its own."""
    predict_only: bool = False
    """Write the answers only, compute no metrics (needs output_path)."""
    bootstrap_iters: int = 1000
    """Resamplings behind the standard errors that have no formula; 0 computes none."""
    output_path: Path | None = None
    """Directory for the harness's own files: results, and every document with its answer as jsonl."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
            ImportError: If the harness is not installed.
        """
        super().check()
        check_installed()
        check_positive(self, "limit", "batch_size")
        for name in ("num_fewshot", "bootstrap_iters"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.task_names:
            raise ValueError(f"tasks must name at least one, got {self.tasks!r}")
        if self.include_path is not None and not self.include_path.is_dir():
            raise ValueError(f"include_path must be a directory, got {self.include_path}")
        _ = self.task_metadata
        if self.predict_only and self.output_path is None:
            raise ValueError("predict_only writes answers; say where with --output_path")

    @property
    def task_metadata(self) -> dict[str, Any]:
        """The arguments of the tasks.

        Raises:
            ValueError: If they are no JSON object.
        """
        try:
            values = json.loads(self.metadata or "{}")
        except json.JSONDecodeError:
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"metadata must be a JSON object, got {self.metadata!r}")
        return values

    @property
    def task_names(self) -> list[str]:
        """The tasks."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]
