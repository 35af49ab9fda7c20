"""`hmt harness`: tasks of lm-evaluation-harness, with a model that has a memory."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

import hmt.harness.adapter  # noqa: F401  # the harness knows the model by name then
from hmt.harness import HarnessOptions
from hmt.model.loading import choose_device
from hmt.options import ModelOptions
from hmt.pretrained import first_line

SETTINGS = (
    "num_fewshot", "batch_size", "device", "limit", "gen_kwargs", "apply_chat_template", "system_instruction",
    "fewshot_as_multiturn", "predict_only", "bootstrap_iters",
)  # fmt: skip
"""Options that are the harness's own."""

ELSEWHERE = ("model_name", "load_from_ckpt", "hub_map", "cache_dir")
"""Fields of `ModelOptions` that the harness's model does not take."""


def run(options: HarnessOptions) -> tuple[dict[str, Any], str]:
    """Run the tasks.

    Returns:
        The harness's results without its samples, and its tables.

    Raises:
        ValueError: If there is no such task, or it cannot be loaded.
        OSError: If there is no such model, or the data of a task cannot be read.
    """
    choose_device(options.device)  # the adapter falls back to the CPU, as the harness does
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = model_arguments(options)
    tasks, manager = load_tasks(options, arguments)  # before the model: what is missing should be known at once
    tracker = None if options.output_path is None else EvaluationTracker(output_path=str(options.output_path))
    results = simple_evaluate(
        model="hmt",
        model_args=arguments,
        tasks=tasks,
        task_manager=manager,
        **{name: getattr(options, name) for name in SETTINGS},
        evaluation_tracker=tracker,
        log_samples=tracker is not None,
    )
    samples = results.pop("samples", None)
    if tracker is not None:
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    tables = [make_table(results), *([make_table(results, "groups")] if results.get("groups") else [])]
    return json.loads(json.dumps(results, default=handle_non_serializable)), "\n".join(tables).rstrip()


def model_arguments(options: HarnessOptions) -> dict[str, Any]:
    """Return the model as the harness's `model_args`: `pretrained`, and every field that is set."""
    chosen = {field.name: getattr(options, field.name) for field in fields(ModelOptions) if field.name != "device"}
    given = {name: value for name, value in chosen.items() if value is not None and name not in ELSEWHERE}
    bos = {} if options.add_bos_token is None else {"add_bos_token": options.add_bos_token}
    return {"pretrained": options.load_from_ckpt or options.model_name} | given | bos


def load_tasks(options: HarnessOptions, arguments: dict[str, Any]) -> tuple[list[Any], TaskManager]:
    """Load the tasks and groups that the options name, with their data.

    Raises:
        ValueError: If there is no such task, or it cannot be loaded.
        OSError: If its data cannot be read.
    """
    path = None if options.include_path is None else str(options.include_path)
    metadata = arguments | options.task_metadata
    manager = TaskManager(include_path=path, include_defaults=False, metadata=metadata)
    if not set(options.task_names) <= set(manager.all_subtasks):  # the harness's own take seconds to be listed
        manager = TaskManager(include_path=path, metadata=metadata)
    try:
        loaded = manager.load(options.task_names)
    except (KeyError, RuntimeError, AttributeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else first_line(error)
        raise ValueError(f"tasks {options.tasks} cannot be loaded: {reason}") from error
    inside = {name for names in loaded["group_map"].values() for name in names}
    return [one for name, one in (loaded["groups"] | loaded["tasks"]).items() if name not in inside], manager
