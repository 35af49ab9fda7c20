"""The harness gets the same figures as from its own model, and those of all of a text that its own cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from hmt.harness.adapter import HMTLM, model_options
from hmt.model.modeling_hmt import HMTForCausalLM
from tests.conftest import make_model
from tests.harness.conftest import PAGE, requests

QUESTIONS = [
    ("In which box is item 3? In", " box 1"),
    ("In which box is item 3? In", " box 2"),
    ("In which box is item 3? In", " none of them"),
    ("A shorter one ", "with a space before it"),
    ("", "Nothing stands before this."),
]


def backbone(folder: Path, batch_size: int = 3, **settings: object) -> HMTLM:
    """The backbone alone, with a window that holds the short texts."""
    return HMTLM(str(folder), mode="backbone", segment_length=256, batch_size=batch_size, **settings)


def test_the_harness_knows_the_model_by_name() -> None:
    assert get_model("hmt") is HMTLM


@pytest.mark.parametrize("bos", [None, True, False])
def test_log_likelihoods_are_those_of_the_harness_own_model(
    backbone_dir: Path, harness_hf: HFLM, bos: bool | None
) -> None:
    if bos is not None:
        harness_hf = HFLM(pretrained=str(backbone_dir), dtype="float32", device="cpu", add_bos_token=bos)
    asked = requests("loglikelihood", *QUESTIONS)
    ours = backbone(backbone_dir, add_bos_token=bos).loglikelihood(asked, disable_tqdm=True)
    theirs = harness_hf.loglikelihood(asked, disable_tqdm=True)
    assert [one[0] for one in ours] == pytest.approx([one[0] for one in theirs], abs=1e-4)
    assert [one[1] for one in ours] == [one[1] for one in theirs]


def test_rolling_log_likelihoods_are_those_of_the_harness_own_model(backbone_dir: Path, harness_hf: HFLM) -> None:
    asked = requests("loglikelihood_rolling", (PAGE[:100],), ("",), (PAGE[100:250],), ("x",))
    ours = backbone(backbone_dir).loglikelihood_rolling(asked, disable_tqdm=True)
    theirs = harness_hf.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[1] == 0


def test_continuations_are_those_of_the_harness_own_model(backbone_dir: Path, harness_hf: HFLM) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 20}
    asked = requests("generate_until", *(("Where is item?" + " Where?" * n, settings) for n in range(5)))
    ours = backbone(backbone_dir).generate_until(asked, disable_tqdm=True)
    assert ours == harness_hf.generate_until(asked, disable_tqdm=True)
    stop = next(letter for text in ours for letter in text[2:] if letter.isalnum())
    again = requests("generate_until", *((one.args[0], settings | {"until": [stop]}) for one in asked))
    stopped = backbone(backbone_dir).generate_until(again, disable_tqdm=True)
    assert stopped == harness_hf.generate_until(again, disable_tqdm=True)
    assert stopped == [text.split(stop)[0] for text in ours]
    assert stopped != ours


@pytest.mark.parametrize("fields", [{"mode": "backbone"}, {"mode": "rmt"}, {"recall_query": "previous"}])
@torch.no_grad()
def test_a_document_of_many_windows_is_scored_on_every_token(
    harness_model: Callable[..., HMTLM], monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]
) -> None:
    judged = harness_model(**fields)
    read = []
    step = HMTForCausalLM.step
    monkeypatch.setattr(
        HMTForCausalLM, "step", lambda self, ids, *a, **k: (read.append(ids.shape[1]), step(self, ids, *a, **k))[1]
    )
    [total] = judged.loglikelihood_rolling(requests("loglikelihood_rolling", (PAGE,)), disable_tqdm=True)
    tokens = len(PAGE.encode())
    assert sum(read) == tokens > 50 * judged.model.config.fresh_tokens  # BOS and all but the last, each once
    ids = torch.tensor([[judged.prefix_token_id, *judged.tok_encode(PAGE)]])
    output = judged.model(ids, labels=ids)
    assert int(output.scored_mask.sum()) == tokens
    assert total == pytest.approx(-float(output.nll.sum()), rel=1e-5)


def test_documents_side_by_side_score_as_one_by_one(harness_model: Callable[..., HMTLM]) -> None:
    asked = requests("loglikelihood_rolling", (PAGE,), (PAGE[:300],), (PAGE[:17],), (PAGE[300:500],))
    totals = [harness_model(batch_size=size).loglikelihood_rolling(asked, disable_tqdm=True) for size in (1, 3)]
    assert totals[0] == pytest.approx(totals[1], abs=1e-3)


def test_a_long_prompt_is_answered_from_all_of_it(harness_model: Callable[..., HMTLM]) -> None:
    judged = harness_model(recall_query="previous")
    settings = {"until": ["</s>"], "max_gen_toks": 20}
    [answer] = judged.generate_until(requests("generate_until", (PAGE, settings)), disable_tqdm=True)
    ids = torch.tensor([judged.tok_encode(PAGE)])
    written = judged.model.generate(ids, max_new_tokens=20, do_sample=False)
    assert answer == judged.tok_decode(written[0, ids.shape[1] :].tolist()).split("</s>")[0]


def test_a_checkpoint_keeps_its_settings_unless_told_otherwise(
    tmp_path: Path, backbone_dir: Path, harness_model: Callable[..., HMTLM]
) -> None:
    make_model(num_sensory=3).save_pretrained(tmp_path)
    judged = harness_model(num_sensory=3)
    judged.tokenizer.save_pretrained(tmp_path)
    loaded = HMTLM.create_from_arg_string(f"pretrained={tmp_path},dtype=float32", {"batch_size": 2, "device": "cuda:0"})
    assert loaded.model.config.num_sensory == 3
    assert loaded.batch_size == 2
    asked = requests("loglikelihood", (PAGE, "item"))
    assert loaded.loglikelihood(asked)[0][0] == pytest.approx(judged.loglikelihood(asked)[0][0], abs=1e-5)
    assert model_options(str(tmp_path), {"mode": "rmt"}).mode == "rmt"
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sensory"]  # as one that was written before there was a choice
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_options(str(tmp_path), {}).sensory == "reread"
    assert model_options(str(backbone_dir), {}).load_from_ckpt is None


def test_the_results_say_how_the_model_reads(harness_model: Callable[..., HMTLM]) -> None:
    info = harness_model(mode="rmt").get_model_info()
    assert info["model_memory"]["mode"] == "rmt"
    assert info["model_memory"]["segment_length"] == 20


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_length": 5}, "takes no 'max_length'"),
        ({"mode": "best"}, "mode must be one of hmt, short_term, rmt, backbone, got 'best'"),
        ({"segment_length": "long"}, "segment_length must be int .*got 'long'"),
        ({"segment_length": 5}, "segment_length must be at least"),
        ({"batch_size": "auto"}, "batch_size must be a number of rows above 0, got 'auto'"),
    ],
)
def test_a_mistake_is_named(backbone_dir: Path, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HMTLM(str(backbone_dir), **settings)
