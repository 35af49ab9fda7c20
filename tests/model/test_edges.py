"""Inputs at the edge: short, single, empty, misshapen."""

from __future__ import annotations

import pytest
import torch

from hmt import HMTForCausalLM
from tests.conftest import make_model, random_ids


@pytest.mark.parametrize("mode", ["hmt", "short_term", "rmt", "backbone"])
@pytest.mark.parametrize("tokens", [1, 2, 13, 14, 15])
def test_short_texts_are_read_at_their_own_length(mode: str, tokens: int) -> None:
    ids = random_ids(1, tokens)
    output = make_model(mode=mode)(ids, labels=ids)
    assert output.logits.shape == (1, tokens, 300)
    assert output.nll.shape == output.causal_mask.shape == (1, tokens - 1)
    assert output.memory.tokens_read.tolist() == [tokens]
    if tokens == 1:
        assert output.loss.isnan()  # nothing to predict, as in transformers
    else:
        assert output.loss.isfinite()


def test_an_empty_text_is_refused(model: HMTForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"at least one token, got \(1, 0\)"):
        model(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"leaves no token in row\(s\) \[1\]"):
        model(random_ids(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_shapes_that_do_not_fit_are_refused(model: HMTForCausalLM) -> None:
    with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
        model(random_ids(2, 3), attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="labels must have the shape of input_ids"):
        model(random_ids(2, 3), labels=random_ids(2, 4))
    with pytest.raises(ValueError, match="a segment has 14 fresh tokens, step was given 15"):
        model.step(random_ids(1, 15))


def test_step_refuses_the_state_of_a_model_with_other_settings(model: HMTForCausalLM) -> None:
    state = make_model(mode="rmt").remember(random_ids(1, 20))
    with pytest.raises(ValueError, match=r"this memory was written by .* mode=rmt"):
        model.step(random_ids(1, 3), state)
    with pytest.raises(ValueError, match=r"memory holds 1 row\(s\), input_ids has 2"):
        model.step(random_ids(2, 3), model.remember(random_ids(1, 20)))


def test_loss_tokens_scores_the_end_of_each_row(model: HMTForCausalLM) -> None:
    ids = random_ids(2, 40)
    mask = torch.ones(2, 40)
    mask[1, :11] = 0
    everything = model(ids, attention_mask=mask, labels=ids)
    end = model(ids, attention_mask=mask, labels=ids, loss_tokens=9)
    assert end.scored_mask.sum(dim=1).tolist() == [9, 9]
    torch.testing.assert_close(end.loss, everything.nll[:, -9:].mean())


@torch.no_grad()
def test_sensory_tokens_reach_over_several_segments() -> None:
    model = make_model(mode="backbone", num_sensory=14)  # of segments of 6
    ids = random_ids(1, 42)
    whole = model(ids).logits
    for number in range(7):
        start = max(6 * number - 14, 0)
        alone = model.backbone(ids[:, start : 6 * number + 6]).logits[:, -6:]
        torch.testing.assert_close(whole[:, 6 * number : 6 * number + 6], alone, atol=1e-5, rtol=0)


def test_holes_in_the_mask_are_passed_over(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 40)
    holes = torch.zeros(1, 50, dtype=torch.long)
    mask = torch.ones(1, 50, dtype=torch.long)
    mask[0, [0, 3, 4, 17, 18, 19, 30, 44, 45, 49]] = 0
    holes[mask.bool()] = ids[0]
    with_holes, without = model(holes, attention_mask=mask, labels=holes), model(ids, labels=ids)
    torch.testing.assert_close(with_holes.loss, without.loss)
    torch.testing.assert_close(with_holes.logits[mask.bool()], without.logits[0])


def test_recall_is_reported_in_order_of_segments_then_rows(model: HMTForCausalLM) -> None:
    ids = random_ids(2, 14 * 4)
    mask = torch.ones(2, 14 * 4)
    mask[1, 14 * 2 :] = 0
    recall = model(ids, attention_mask=mask, output_recall=True).recall
    assert [weights.shape for weights in recall.weights] == [(2, 1, 1), (2, 1, 2), (2, 1, 3)]
    # Segment 1 in both rows, segments 2 and 3 in the first row only.
    assert len(recall.distances) == 4
    assert recall.distances[:2] == [1, 1]
    assert all(weights.sum(-1).allclose(torch.ones(2, 1)) for weights in recall.weights)


def test_recall_weights_of_the_first_segment_point_at_it(model: HMTForCausalLM) -> None:
    weights = model(random_ids(1, 28), output_recall=True).recall.weights
    assert [w.tolist() for w in weights] == [[[[1.0]]]]
