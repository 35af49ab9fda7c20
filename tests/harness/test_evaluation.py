"""Three kinds of tasks from local files, offline, by the verb and by the harness's own command line."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hmt.cli.parser import parse
from hmt.harness.__main__ import main
from hmt.harness.evaluation import model_arguments
from tests.conftest import CHAT_TEMPLATES
from tests.harness.conftest import TASKS

RunCli = Callable[..., tuple[int, str, str]]
ALL = ",".join(TASKS)
FITTING = ("--mode", "backbone", "--segment_length", 250)


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """Every figure of the tasks, by task and metric."""
    return {
        f"{task} {metric}": value
        for task, metrics in results["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    }


def test_three_kinds_of_tasks_have_the_figures_of_the_harness_own_model(
    run_cli: RunCli, tasks_dir: Path, backbone_dir: Path, harness_hf: HFLM
) -> None:
    figures = tasks_dir / "figures.json"
    status, out, _ = run_cli(
        "harness", "--model_name", backbone_dir, *FITTING, "--tasks", ALL, "--include_path", tasks_dir,
        "--batch_size", 2, "--json", figures, "--output_path", tasks_dir / "out",
    )  # fmt: skip
    assert status == 0
    assert all(name in out for name in (*TASKS, "word_perplexity", "acc_norm", "exact_match"))
    ours = json.loads(figures.read_text())
    theirs = simple_evaluate(
        harness_hf, tasks=list(TASKS), bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks_dir), include_defaults=False),
    )  # fmt: skip
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-5)
    assert len(numbers(ours)) == 6
    assert ours["config"]["model_memory"]["mode"] == "backbone"
    written = {path.name.split("_2")[0]: path for path in (tasks_dir / "out").rglob("samples_*.jsonl")}
    samples = [json.loads(line) for line in written["samples_boxes_answer"].read_text().splitlines()]
    assert [one["resps"] for one in samples] == [one["resps"] for one in theirs["samples"]["boxes_answer"]]


def test_tasks_run_with_a_memory_and_a_limit(run_cli: RunCli, tasks_dir: Path, backbone_dir: Path) -> None:
    figures = tasks_dir / "figures.json"
    status, _, error = run_cli(
        "harness", "--model_name", backbone_dir, "--segment_length", 20, "--num_sensory", 4, "--tasks", ALL,
        "--include_path", tasks_dir, "--limit", 2, "--gen_kwargs", "max_gen_toks=3", "--json", figures,
    )  # fmt: skip
    assert status == 0, error
    results = json.loads(figures.read_text())
    assert {task: counts["effective"] for task, counts in results["n-samples"].items()} == dict.fromkeys(TASKS, 2)
    assert results["config"]["model_memory"]["segment_length"] == 20


def test_questions_are_put_into_the_chat_template(
    run_cli: RunCli, tasks_dir: Path, backbone_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(backbone_dir)
    arguments = ["--tasks", "boxes_answer", "--include_path", tasks_dir, "--limit", 1, "--apply_chat_template"]
    status, _, error = run_cli("harness", "--model_name", backbone_dir, *arguments)
    assert status == 2
    assert error.splitlines()[-1].startswith("hmt harness: the tokenizer has no chat template")
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHAT_TEMPLATES["chatml"]
    for part in (model, chatty):
        part.save_pretrained(tasks_dir / "chatty")
    arguments += ["--output_path", tasks_dir / "out", "--system_instruction", "Be brief."]
    status, _, error = run_cli("harness", "--model_name", tasks_dir / "chatty", *arguments)
    assert status == 0, error
    [sample] = [json.loads(path.read_text()) for path in (tasks_dir / "out").rglob("samples_*.jsonl")]
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert prompt == "[system]\nBe brief.[end]\n[user]\nWhere is item 0?[end]\n[assistant]\n"


def test_settings_of_the_model_reach_it() -> None:
    options = parse("harness", ["--tasks", "any", "--mode", "rmt", "--dtype", "bfloat16", "--add_bos_token", "True"])
    arguments = model_arguments(options)
    assert arguments["pretrained"] == "smollm2-135m"
    assert (arguments["mode"], arguments["dtype"], arguments["add_bos_token"]) == ("rmt", "bfloat16", True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--tasks", "no_such_task"), "no_such_task"),
        (("--tasks", ","), "tasks must name at least one"),
        (("--tasks", "arc_easy", "--include_path", "/nowhere"), "include_path must be a directory, got /nowhere"),
        (("--tasks", "arc_easy", "--metadata", "[1]"), "metadata must be a JSON object"),
        (("--tasks", "arc_easy", "--predict_only"), "say where with --output_path"),
        (("--tasks", "arc_easy", "--device", "cuda:9"), "device 'cuda:9' cannot be used"),
    ],
)
def test_a_mistake_is_one_line(run_cli: RunCli, backbone_dir: Path, arguments: tuple[str, ...], complaint: str) -> None:
    status, _, error = run_cli("harness", "--model_name", backbone_dir, *arguments)
    assert status == 2
    assert complaint in error.splitlines()[-1]


def test_without_the_harness_the_extra_is_named(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else found(name, *more)
    )
    need = "tasks of lm-evaluation-harness need lm_eval, the extra lm-eval: pip install lm_eval\n"
    assert run_cli("harness", "--tasks", "arc_easy") == (2, "", f"hmt harness: {need}")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"hmt.harness: {need}"


@pytest.mark.slow
def test_the_command_line_of_the_harness_knows_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tasks_dir: Path, backbone_dir: Path
) -> None:
    model = f"pretrained={backbone_dir},segment_length=20,num_sensory=4"
    flags = f"--model hmt --model_args {model} --tasks boxes_choice --include_path {tasks_dir}"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *flags.split()])
    main()
    table = capsys.readouterr().out
    assert "hmt ({'pretrained'" in table
    assert "boxes_choice" in table
