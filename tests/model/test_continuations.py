"""A context is read once, and no prompt sees what is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmt.model.continuations import Answer, answers
from hmt.model.generation import GenerateOutput
from hmt.model.modeling_hmt import HMTForCausalLM
from tests.conftest import make_model, make_rolling, random_ids

SETTINGS = [
    {"mode": "backbone"},
    {"mode": "short_term"},
    {"mode": "rmt"},
    {"recall_query": "previous"},
    {"recall_query": "prefix"},
    {"recall_query": "prefix", "num_memory_tokens": 2, "num_sensory": 2},
    {"recall_query": "prefix", "sum_fraction": 1.0},
    {"sensory": "cache"},
    {"sensory": "cache", "num_memory_tokens": 1, "num_sensory": 6, "num_recalled_tokens": 0},
    {"dynamic_reading": True, "num_sensory": 8},
    {"dynamic_reading": True, "recall_query": "previous", "num_sensory": 5},
]


def make(fields: dict[str, Any]) -> HMTForCausalLM:
    """A tiny model with either form of sensory memory."""
    return make_rolling(**fields) if fields.get("sensory") == "cache" else make_model(**fields)


Requests = list[tuple[list[int], list[int]]]


def ids(tokens: int, seed: int) -> list[int]:
    """Random tokens."""
    return random_ids(1, tokens, seed)[0].tolist()


def in_order(model: HMTForCausalLM, asked: Requests, batch_size: int = 4) -> list[Answer]:
    """The answers in the order of the requests."""
    return sorted(answers(model, asked, batch_size), key=lambda answer: answer.number)


def questions(context_tokens: int) -> Requests:
    """One context with continuations of one token, of several, and of more than a segment."""
    context = ids(context_tokens, seed=1)
    return [(context, ids(tokens, seed)) for seed, tokens in enumerate((1, 1, 3, 9, 20, 40), start=2)]


@pytest.mark.parametrize("context_tokens", [1, 14, 29, 75])
@pytest.mark.parametrize("fields", SETTINGS[:4], ids=str)
@torch.no_grad()
def test_reading_a_context_once_is_reading_every_text_whole(fields: dict[str, Any], context_tokens: int) -> None:
    model = make(fields)
    asked = questions(context_tokens)
    for (context, continuation), answer in zip(asked, in_order(model, asked), strict=True):
        whole = torch.tensor([context + continuation])
        output = model(whole, labels=whole)
        assert answer.loglikelihood == pytest.approx(-float(output.nll[0, -len(continuation) :].sum()), abs=1e-4)
        likeliest = output.logits[0, -len(continuation) - 1 : -1].argmax(dim=-1)
        assert answer.greedy == (likeliest.tolist() == continuation)


@pytest.mark.parametrize("context_tokens", [10, 29, 75])
@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@torch.no_grad()
def test_a_log_likelihood_is_that_with_which_the_model_writes(fields: dict[str, Any], context_tokens: int) -> None:
    model = make(fields)
    context = ids(context_tokens, seed=1)
    out = model.generate(
        torch.tensor([context]), max_new_tokens=40, eos_token_id=[], output_logits=True, return_dict_in_generate=True
    )
    assert isinstance(out, GenerateOutput)
    assert out.sequences is not None
    assert out.logits is not None
    written = out.sequences[0, len(context) :].tolist()
    nats = [logits.log_softmax(dim=-1)[0, token] for logits, token in zip(out.logits, written, strict=True)]
    for count in (1, 5, 40):
        other = [*written[: count - 1], (written[count - 1] + 1) % 300]
        kept, changed = in_order(model, [(context, written[:count]), (context, other)])
        assert kept.loglikelihood == pytest.approx(float(sum(nats[:count])), abs=1e-3)
        assert kept.greedy
        assert not changed.greedy


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_one_token_answers_share_their_probability(fields: dict[str, Any]) -> None:
    context = ids(40, seed=1)
    found = in_order(make(fields), [(context, [token]) for token in range(300)])
    assert sum(torch.tensor(answer.loglikelihood).exp() for answer in found) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_requests_side_by_side_are_answered_as_one_by_one(fields: dict[str, Any]) -> None:
    model = make(fields)
    asked = [request for tokens in (3, 30, 47) for request in questions(tokens)]
    alone = [in_order(model, [request], batch_size=1)[0].loglikelihood for request in asked]
    for size in (7, 50):
        assert [answer.loglikelihood for answer in in_order(model, asked, size)] == pytest.approx(alone, abs=1e-4)


def test_a_context_is_remembered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    read = {"remember": 0, "step": 0}
    for name in read:
        method = getattr(HMTForCausalLM, name)

        def count(self: HMTForCausalLM, tokens: torch.Tensor, *a: object, name: str = name, method=method, **k: object):  # type: ignore[no-untyped-def]
            read[name] += tokens.numel()
            return method(self, tokens, *a, **k)

        monkeypatch.setattr(HMTForCausalLM, name, count)
    context = ids(14 * 5 + 3, seed=1)
    in_order(model, [(context, [token]) for token in range(4)] + [(context, [5, token]) for token in range(4)])
    assert read["remember"] == 14 * 5 + 2
    # Two rows go on from it with the context's last token: for the answers of one token, and for those of two.
    assert read["step"] == read["remember"] + 2 * 2


def test_one_unlikely_token_is_enough_not_to_be_greedy() -> None:
    model = make_model()
    context = ids(40, seed=1)
    likeliest = model.generate(torch.tensor([context]), max_new_tokens=1)[0, -1]
    begun = torch.tensor([[*context, (int(likeliest) + 1) % 300]])
    written = model.generate(begun, max_new_tokens=3, eos_token_id=[])
    assert isinstance(written, torch.Tensor)
    [answer] = in_order(model, [(context, written[0, len(context) :].tolist())])
    assert not answer.greedy
    [rest] = in_order(model, [(begun[0].tolist(), written[0, begun.shape[1] :].tolist())])
    assert rest.greedy
