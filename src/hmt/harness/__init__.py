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
    """Run tasks of lm-evaluation-harness on texts of any length (needs the extra lm-eval)."""

    tasks: str
    """Tasks, groups or YAML files of the harness, separated by commas."""
    include_path: Path | None = None
    """Directory with YAML files of additional tasks."""
    num_fewshot: int | None = None
    """Number of few-shot examples per question. Default: the task's own."""
    limit: float | None = None
    """Maximum number of documents per task, or a fraction of them if below 1."""
    batch_size: int = 1
    """Samples per batch."""
    metadata: str | None = None
    """Arguments of configurable tasks, as JSON, such as '{"max_seq_lengths": [4096, 8192]}' for ruler."""
    gen_kwargs: str | None = None
    """Generation settings that override the tasks' own: max_gen_toks=64,do_sample=true,temperature=0.8."""
    add_bos_token: bool | None = None
    """Start each text with the BOS token. Default: as the tokenizer does."""
    apply_chat_template: bool = False
    """Apply the tokenizer's chat template."""
    system_instruction: str | None = None
    """System message of each prompt."""
    fewshot_as_multiturn: bool = True
    """Make each few-shot example a turn of its own, with --apply_chat_template."""
    predict_only: bool = False
    """Write the answers without computing metrics (needs --output_path)."""
    bootstrap_iters: int = 1000
    """Bootstrap iterations for standard errors that have no formula; 0 disables them."""
    output_path: Path | None = None
    """Directory for the harness's own files: results, and all answers as JSON Lines."""

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
