"""Training on questions: a memory learns answers, on its own and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmt.text.answers import tokenize_questions
from hmt.text.questions import Question
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from tests.conftest import VOCAB, byte_tokenizer, make_model


def questions(count: int) -> list[Question]:
    """Questions whose context says the answer, 60 characters before it is asked for."""
    return [
        Question(str(n), str(n), f"It is {'ab'[n % 2]}. {'.' * 60}", " What?", ("ab"[n % 2],), supporting=((0, 8),))
        for n in range(count)
    ]


def test_the_loss_is_that_of_the_answers_alone(tmp_path: Path) -> None:
    options = TrainOptions(
        segment_length=20, num_sensory=4, mem_recall_hidden_dim=16, mem_recall_context=5, stage_1_step=0,
        training_step=30, bptt_depth=8, batch_size=2, train_backbone=True, learning_rate=1e-2,
        save_ckpt=tmp_path / "ckpt",
    )  # fmt: skip
    texts = tokenize_questions(questions(8), byte_tokenizer(), VOCAB)
    training = Training(make_model(), options, keep=False)
    figures = training.run(texts, texts)
    assert figures["tokens"] == 30 * 2 * len(texts[0].ids)
    assert figures["last_loss"] < figures["first_loss"] - 0.5


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A directory with questions in each split."""
    for split, count in (("train", 6), ("validation", 4), ("test", 4)):
        rows = [{"context": q.context, "prompt": q.prompt, "answers": q.answers} for q in questions(count)]
        (tmp_path / f"questions.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def flags(task: Path | str, *more: object) -> list[object]:
    return [
        "--task_name", task, "--segment_length", 20, "--num_sensory", 4, "--mem_recall_hidden_dim", 16,
        "--stage_1_step", 1, "--training_step", 2, *more,
    ]  # fmt: skip


def test_a_directory_of_questions_trains_and_tests(
    asked: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    more = ("--eval_step", 1, "--test_step", 4, "--save_ckpt", tmp_path / "ckpt")
    status, said, complaint = run_cli("train", "--model_name", backbone_dir, *flags(asked, *more))
    assert status == 0, complaint
    assert "over 12 targets of 4 samples" in said  # a space, a letter and the end, four times


@pytest.mark.parametrize("query", ["prefix", "previous"])
def test_a_query_that_reads_the_answer_is_told_of(
    query: str, asked: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any, caplog: pytest.LogCaptureFixture
) -> None:
    more = ("--recall_query", query, "--save_ckpt", tmp_path / "ckpt")
    assert run_cli("train", "--model_name", backbone_dir, *flags(asked, *more))[0] == 0
    told = any("--recall_query previous" in record.getMessage() for record in caplog.records)
    assert told == (query == "prefix")


def test_needles_are_measured_with_the_models_tokenizer(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    more = ("--context_lengths", 200, "--depths", "0.5", "--per_cell", 4, "--bptt_depth", 30, "--test_step", 4)
    status, said, complaint = run_cli(
        "train", "--model_name", backbone_dir, *flags("needle", *more, "--save_ckpt", tmp_path / "ckpt")
    )
    assert status == 0, complaint
    longest = int(said.split("samples of up to ")[1].split()[0])
    assert longest < 200 + len("\n\nWhat is the pass key? The pass key is 12345") + 1 + 1


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--interleave_dataset",), "interleave_dataset"),
        (("--streaming", "--train_set_split", "2%"), "train_set_split"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    more: tuple[str, ...], complaint: str, asked: Path, backbone_dir: Path, run_cli: Any
) -> None:
    status, _, told = run_cli("train", "--model_name", backbone_dir, *flags(asked, *more))
    assert status == 2
    assert complaint in told


def test_one_file_is_not_both_training_and_test(asked: Path, backbone_dir: Path, run_cli: Any) -> None:
    file = asked / "questions.train.jsonl"
    status, _, told = run_cli("train", "--model_name", backbone_dir, *flags(file, "--test_step", 2))
    assert status == 2
    assert "--test_step" in told
