"""Questions are answered from what was remembered, and nothing of an answer is seen before it is written."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hmt import HMTForCausalLM
from hmt.cli.evaluate import ANSWER_COLUMNS, table
from hmt.evaluation.options import EvaluateOptions
from hmt.evaluation.questions import RETRIEVERS, QuestionReader, QuestionScores, answer_nats
from hmt.memory.window import RECALLED
from hmt.text.answers import tokenize_questions
from hmt.text.questions import Question
from tests.conftest import make_backbone, make_model, make_rolling, random_ids

ROWS = "backbone,rmt,short_term,hmt"


@dataclass(frozen=True)
class Needle(Question):
    """A question that knows where its answer lies."""

    length: int = 0
    depth: float = 0.0


def question(number: int, **fields: Any) -> Question:
    """A question with a choice of answers."""
    given = {
        "name": f"q{number}",
        "source": f"s{number // 2}",
        "context": f"Box {number // 2} holds a red ball and a key. " * 3,
        "prompt": f"\nWhat is in box {number}? Answer:",
        "answers": ("yes",),
        "choices": ("yes", "no", "maybe"),
    }
    return Question(**given | fields)


def ask(model: HMTForCausalLM, questions: list[Question], tokenizer: Any, **fields: Any) -> QuestionScores:
    """The scores of one checkpoint."""
    options = EvaluateOptions(
        **{"sensory": "reread", "segment_length": 20, "modes": ROWS, "max_new_tokens": 8} | fields
    )
    scores = QuestionScores(questions, options, tokenizer)
    scores.measure(model, options.rows, None)
    return scores


def test_other_answers_change_no_prediction(tokenizer: PreTrainedTokenizerFast) -> None:
    questions = [question(n) for n in range(3)]
    others = [replace(one, answers=("the moon", "no"), supporting=((0, 3),)) for one in questions]
    first, second = (ask(make_model(), given, tokenizer).predictions for given in (questions, others))
    assert [one["prediction"] for one in first] == [one["prediction"] for one in second]
    assert any(one["prediction"] for one in first)
    assert [one["answer_nats"] for one in first] != [one["answer_nats"] for one in second]


def test_a_prediction_is_what_the_model_writes_after_context_and_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = make_model(), question(1)
    predictions = {one["row"]: one for one in ask(model, [asked], tokenizer).predictions}
    text = tokenizer(asked.context + asked.prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    for row in ROWS.split(","):
        ids = model.variant(mode=row).generate(text, max_new_tokens=8, do_sample=False)[0, text.shape[1] :]
        assert predictions[row]["prediction"] == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert predictions["hmt"]["context_tokens"] == len(asked.context)


def test_only_the_first_line_counts_where_that_is_asked_for(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = torch.tensor(tokenizer(" yes, or\nno", add_special_tokens=False)["input_ids"])
    monkeypatch.setattr("hmt.evaluation.questions.write_answer", lambda *_: written)
    model = make_model()
    whole, line = (
        ask(model, [question(0)], tokenizer, modes="hmt", first_line=first).predictions[0]["prediction"]
        for first in (False, True)
    )
    assert (whole, line) == ("yes, or\nno", "yes, or")


@pytest.mark.parametrize(
    "fields", [{}, {"num_recalled_tokens": 3}, {"mode": "rmt"}, {"recall_query": "previous"}], ids=str
)
@torch.no_grad()
def test_an_answer_costs_what_it_would_be_written_with(fields: dict[str, Any]) -> None:
    model, text, prompt = make_model(**fields), random_ids(1, 50), random_ids(1, 6, seed=1)[0]
    state = model.remember(text)
    answers = [random_ids(1, count, seed=count)[0] for count in (1, 5, 17)]
    for answer, cost in zip(answers, answer_nats(model, state, prompt, answers), strict=True):
        nats, ids = 0.0, prompt
        for token in answer:  # whatever comes later cannot have been seen
            out = model.generate(
                ids[None], memory=state, max_new_tokens=1, eos_token_id=None, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            nats -= float(out.logits[0][0].log_softmax(dim=-1)[token])
            ids = torch.cat([ids, token[None]])
        assert cost == pytest.approx(nats, rel=1e-4)


def test_a_question_without_a_context_follows_one_with_a_context(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = replace(question(0), name="plain", context="")
    after, alone = (ask(make_model(), asked, tokenizer).predictions for asked in ([question(1), plain], [plain]))
    assert [one for one in after if one["name"] == "plain"] == alone
    assert alone[0]["context_tokens"] == 0


def test_intervals_are_over_documents_and_not_over_their_questions(tokenizer: PreTrainedTokenizerFast) -> None:
    one_text = [replace(question(n), name=str(n), source="same") for n in range(3)]
    (row,) = ask(make_model(), one_text, tokenizer, modes="hmt").rows()
    assert row["questions"] == 3
    assert row["f1_low"] is None


def test_the_table_has_means_and_intervals_over_questions(tokenizer: PreTrainedTokenizerFast) -> None:
    scores = ask(make_model(), [question(n) for n in range(4)], tokenizer)
    for row in scores.rows():
        own = [one for one in scores.predictions if one["row"] == row["row"]]
        assert row["questions"] == len(own) == 4
        assert row["f1"] == pytest.approx(sum(one["f1"] for one in own) / 4)
        assert row["rouge_l_low"] <= row["rouge_l"] <= row["rouge_l_high"]
        assert row["choice_accuracy"] == sum(one["likeliest"] == "yes" for one in own) / 4
        nats, tokens = (sum(one[name] for one in own) for name in ("answer_nats", "answer_tokens"))
        assert row["answer_loss"] == pytest.approx(nats / tokens)
    assert scores.figures()["cells"] == []


def test_a_context_is_read_once_for_all_its_questions(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    remember = HMTForCausalLM.remember

    def noted(self: HMTForCausalLM, ids: torch.Tensor, state: Any = None, *rest: Any) -> Any:
        if state is None:  # a text from its beginning, and not the prompt after it
            read.append(ids)
        return remember(self, ids, state, *rest)

    monkeypatch.setattr(HMTForCausalLM, "remember", noted)
    ask(make_model(), [question(n) for n in range(4)], tokenizer, modes="hmt")
    assert len(read) == 2


def test_the_table_says_which_share_of_the_answers_was_cut_off(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor(tokenizer("no, yes!", add_special_tokens=False)["input_ids"])
    written = iter([ids, ids[:2], ids[:7], ids[:3]])  # of at most 8 tokens
    monkeypatch.setattr("hmt.evaluation.questions.write_answer", lambda *_: next(written))
    scores = ask(make_model(), [question(n) for n in range(4)], tokenizer, modes="hmt")
    assert [one["cut_off"] for one in scores.predictions] == [True, False, False, False]
    heading, _, line = table(scores.rows(), ANSWER_COLUMNS).splitlines()
    end = heading.index("cut off") + len("cut off")
    assert line[:end].endswith(" 0.25")


def test_accuracy_is_given_for_each_length_and_depth(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(["It is 42.", "no idea", "42"])
    monkeypatch.setattr(tokenizer.__class__, "decode", lambda *_, **__: next(found))
    needles = [
        Needle(f"n{n}", "s", "Hay. The code is 42. Hay.", " Code:", ("42",), length=512, depth=depth)
        for n, depth in enumerate((0.5, 0.5, 1.0))
    ]
    assert ask(make_model(), needles, tokenizer, modes="hmt").figures()["cells"] == [
        {"row": "hmt", "length": 512, "depth": 0.5, "accuracy": 0.5, "count": 2},
        {"row": "hmt", "length": 512, "depth": 1.0, "accuracy": 1.0, "count": 1},
    ]


def test_rows_that_answer_nothing_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in ("recompute", "hmt_shuffled"):
        with pytest.raises(ValueError, match=row):
            ask(make_model(), [question(0)], tokenizer, modes=f"hmt,{row}")


HAY = "Nothing of note is told on this line of the text.\n" * 20
TOLD = "The code of Anna is 4711.\n"
NEEDLE = Question(
    name="needle",
    source="book",
    context=HAY[:500] + TOLD + HAY[500:],
    prompt="\nThe code of Anna is",
    answers=("4711",),
    supporting=((500, 500 + len(TOLD)),),
)


def test_rows_of_questions_get_their_passages_at_one_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    (asked,) = tokenize_questions([NEEDLE], tokenizer, 300)
    budget = 60
    runs = {name: retrieve(asked, budget, tokenizer) for name, retrieve in RETRIEVERS.items()}
    for name, found in runs.items():
        assert sum(end - start for start, end in found) <= budget, name
        assert all(0 <= start < end <= len(asked.context) for start, end in found)
    texts = {name: "".join(NEEDLE.context[start:end] for start, end in found) for name, found in runs.items()}
    assert TOLD in texts["oracle"]
    assert "of Anna" in texts["bm25"]
    assert TOLD not in texts["random"]
    assert runs["random"] == RETRIEVERS["random"](asked, budget, tokenizer)


def test_passages_stand_where_their_row_says(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_rolling(segment_length=96, num_recalled_tokens=40)
    (asked,) = tokenize_questions([NEEDLE], tokenizer, len(model.embedding_table))
    held = {}
    for row in ("recall", "oracle", "random", "bm25", "sinks", "absent"):
        reader = QuestionReader(model, row, tokenizer, len(asked.ids))
        context = reader.context(asked)
        state, (prompt,) = reader.prepare(reader.reading.remember(context[None]), [asked])
        assert reader.budget == 40
        text = tokenizer.decode(prompt)
        held[row] = (TOLD in tokenizer.decode(context), text.endswith(asked.question.prompt), len(text))
        recalled = 0 if state is None else int((state.window.kinds[0] == RECALLED).sum())
        assert (recalled > 0) == (row in ("oracle", "random"))
        assert recalled <= 40
        assert reader.asking.config.recalled_tokens == (40 if row in ("recall", "absent") else 0)
        assert reader.budgets(state, 900)["slots_per_token"] == 96  # the same window for all
    assert all(shown for _, shown, _ in held.values())
    assert {row for row, (told, _, _) in held.items() if not told} == {"absent"}
    assert {row for row, (_, _, length) in held.items() if length > len(NEEDLE.prompt)} == {"bm25"}


@torch.no_grad()
def test_full_attends_to_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = replace(NEEDLE, context=NEEDLE.context[450:650], supporting=())
    (one,) = ask(make_rolling(), [asked], tokenizer, modes="full", sensory="cache", segment_length=24).predictions
    ids = torch.tensor([tokenizer(asked.context + asked.prompt, add_special_tokens=False)["input_ids"]])
    written = make_backbone().generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert one["prediction"] == tokenizer.decode(written, skip_special_tokens=True).strip()
    with pytest.raises(ValueError, match="full"):  # the tiny backbone has 512 positions
        ask(make_rolling(), [NEEDLE], tokenizer, modes="full", sensory="cache", segment_length=24)


def test_rows_that_need_the_supporting_text_name_the_question_without(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in ("oracle", "absent"):
        with pytest.raises(ValueError, match="q0"):
            ask(make_rolling(), [question(0)], tokenizer, modes=row, sensory="cache", segment_length=24)


def test_bm25_names_its_extra(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match="extra bm25"):
        ask(make_rolling(), [NEEDLE], tokenizer, modes="bm25", sensory="cache", segment_length=24)


def test_rows_are_compared_question_by_question(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch.tensor(tokenizer("yes", add_special_tokens=False)["input_ids"])
    wrong = torch.tensor(tokenizer("no", add_special_tokens=False)["input_ids"])
    written = iter([right, wrong, wrong, wrong, right, right, wrong, wrong])  # sinks, then hmt
    monkeypatch.setattr("hmt.evaluation.questions.write_answer", lambda *_: next(written))
    asked = [replace(question(n), source=str(n)) for n in range(4)]
    rows = ask(make_model(), asked, tokenizer, modes="sinks,hmt").rows()
    assert [row["delta_accuracy"] for row in rows] == [0, 0.25]
    assert rows[1]["delta_accuracy_low"] == 0  # the first question is right in both: no draw is worse
    assert 0.25 < rows[1]["delta_accuracy_high"] <= 1


def test_a_task_of_questions_is_answered_by_the_command(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    rows = [
        {"name": f"q{n}", "context": f"Box {n} is red. " * 9, "prompt": "Is it red?", "answers": "yes",
         "choices": ["yes", "no"]}
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "questions.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, said, complaint = run_cli(
        "evaluate", "--model_name", backbone_dir, "--task_name", tmp_path, "--segment_length", 40, "--num_sensory", 4,
        "--modes", "sinks,recall,bm25", "--max_questions", 2, "--max_new_tokens", 5,
        "--json", tmp_path / "figures.json", "--predictions", tmp_path / "predictions.jsonl",
    )  # fmt: skip
    assert status == 0, complaint
    assert "2 question(s)" in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["row"], row["questions"]) for row in figures["rows"]] == [("sinks", 2), ("recall", 2), ("bm25", 2)]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["row"], line["name"]) for line in lines] == [
        (row, name) for row in ("sinks", "recall", "bm25") for name in ("q0", "q1")
    ]
    for row in figures["rows"]:
        assert all(row[budget] > 0 for budget in ("slots_per_token", "bytes_kept", "flops_per_token"))
    assert {line["answers"][0] for line in lines} == {"yes"}
    assert {"commit", "command", "config", "environment", "model", "checkpoints"} <= figures.keys()
