"""`hmt harness`: tasks of lm-evaluation-harness, with a model that has a memory."""

from __future__ import annotations

import json
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from hmt.harness.adapter import HMTLM
from hmt.model.loading import load
from hmt.options import HarnessOptions


def run(options: HarnessOptions) -> tuple[dict[str, Any], str]:
    """Run the tasks.

    Returns:
        The harness's results without its samples, and its tables.

    Raises:
        ValueError: If there is no such task, or its data cannot be had.
        OSError: If there is no such model, or the data's hub cannot be reached.
    """
    manager = TaskManager(include_path=None if options.include_path is None else str(options.include_path))
    try:
        manager.load(options.task_names)  # before the model is: a task that is missing should be known at once
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"the tasks {options.tasks} cannot be loaded: {error.args[0] if error.args else error}"
        ) from error
    model, tokenizer = load(options, memory_seed=options.seed)
    tracker = None if options.output_path is None else EvaluationTracker(output_path=str(options.output_path))
    results = simple_evaluate(
        model=HMTLM(model, tokenizer, batch_size=options.batch_size, add_bos_token=options.add_bos_token),
        model_args=options.load_from_ckpt or options.model_name,
        tasks=options.task_names,
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        limit=options.limit,
        gen_kwargs=options.gen_kwargs,
        apply_chat_template=options.apply_chat_template,
        system_instruction=options.system_instruction,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        predict_only=options.predict_only,
        bootstrap_iters=options.bootstrap_iters,
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
