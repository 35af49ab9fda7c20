"""Tasks of three kinds as the harness takes them, YAML and jsonl files, and the two models that answer them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from hmt.harness.adapter import HMTLM
from tests.conftest import byte_tokenizer, make_model

PAGE = "".join(f"item {n * 3 % 11} is stored in box {n * 5 % 7}.\n" for n in range(40))
"""About 1,100 bytes: many windows of the tiny model."""

TASKS: dict[str, dict[str, Any]] = {
    "boxes_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "boxes_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "boxes_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}

DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "boxes_choice": [
        {"question": f"In which box is item {n}? In", "choices": ["box 1", "box 22", "no box"], "gold": n % 3}
        for n in range(5)
    ],
    "boxes_text": [{"text": PAGE[start : start + 90]} for start in (0, 90, 200)],
    "boxes_answer": [{"question": f"Where is item {n}?" + " Where?" * n, "answer": f"box {n}"} for n in range(5)],
}


@pytest.fixture
def tasks_dir(tmp_path: Path) -> Path:
    """Directory of the tasks, as `--include_path` takes it."""
    for name, settings in TASKS.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS[name]))
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **files, **settings}))
    return tmp_path


@pytest.fixture(scope="session")
def harness_hf(backbone_dir: Path) -> HFLM:
    """The harness's own model over the tiny backbone."""
    return HFLM(pretrained=str(backbone_dir), dtype="float32", device="cpu", batch_size=2)


@pytest.fixture
def harness_model() -> Callable[..., HMTLM]:
    """The tiny model with a memory, as the harness sees it: window 20, 14 fresh tokens."""
    return lambda batch_size=1, **fields: HMTLM(make_model(**fields), byte_tokenizer(), batch_size=batch_size)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Requests as the harness passes them."""
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]  # type: ignore[arg-type]
