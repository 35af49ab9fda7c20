"""Learning from a teacher with more context: the divergence is what it says, and its gradient reaches the memory."""

from __future__ import annotations

import pytest
import torch
from hmt.training.teacher import Teacher

from hmt import HMTForCausalLM
from hmt.model import scoring
from hmt.model.backbone import body, embed, head
from hmt.options import TrainOptions
from hmt.text.batches import TokenDocument
from hmt.training.loop import Training
from tests.conftest import make_model, random_ids


def whole(model: HMTForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the backbone that reads all of a text at once."""
    return body(model.backbone, embed(model.backbone, ids))


@torch.no_grad()
def test_the_divergence_is_that_of_the_two_predictions() -> None:
    model, ids = make_model(), random_ids(2, 40)
    teacher = whole(model, ids)
    output = model(ids, labels=ids, teacher_states=teacher, distillation_weight=0.5, return_logits=True)
    theirs, own = head(model.backbone, teacher).softmax(-1), output.logits.softmax(-1)
    expected = (theirs * (theirs / own).log()).sum(-1)[:, :-1].mean()
    torch.testing.assert_close(output.distillation_loss, expected)
    nats = model(ids, labels=ids).loss
    torch.testing.assert_close(output.loss, nats + 0.5 * expected)


@torch.no_grad()
def test_a_student_with_the_teachers_window_has_nothing_to_learn() -> None:
    model, ids = make_model(mode="backbone", segment_length=64, num_sensory=0), random_ids(2, 60)
    output = model(ids, labels=ids, teacher_states=whole(model, ids), return_logits=False)
    assert output.distillation_loss.abs() < 1e-6


@torch.no_grad()
def test_padding_and_unscored_tokens_teach_nothing() -> None:
    model, ids = make_model(), random_ids(1, 40)
    teacher = whole(model, ids)
    labels = ids.masked_fill(torch.arange(40) < 25, -100)
    alone = model(ids, labels=labels, teacher_states=teacher, return_logits=False)
    for side in ((5, 0), (0, 5)):
        padded, marks = (torch.nn.functional.pad(part, side, value=fill) for part, fill in ((ids, 0), (labels, -100)))
        mask = torch.nn.functional.pad(torch.ones_like(ids), side)
        states = torch.nn.functional.pad(teacher, (0, 0, *side), value=7.0)
        output = model(padded, attention_mask=mask, labels=marks, teacher_states=states, return_logits=False)
        torch.testing.assert_close(output.distillation_loss, alone.distillation_loss)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_that_keeps_no_logits_gives_the_gradient_of_whole_logits(frozen: bool) -> None:
    model = make_model().train()
    if frozen:
        model.freeze_backbone()
        model.add_lora(rank=2, dropout=0.0)
    hidden = torch.randn(2, 9, 32, requires_grad=True)
    teacher, targets = torch.randn(2, 9, 32), random_ids(2, 9)
    targets[0, 3] = scoring.IGNORED
    nats, divergence = scoring.nll_and_divergence(model.backbone, hidden, targets, teacher)
    (0.3 * nats.sum() + 1.7 * divergence.square().sum()).backward()
    known = hidden.detach().requires_grad_()
    logits, theirs = head(model.backbone, known), head(model.backbone, teacher).log_softmax(-1)
    plain = scoring.logits_nll(logits, targets)
    apart = (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1) * (targets != scoring.IGNORED)
    (0.3 * plain.sum() + 1.7 * apart.square().sum()).backward()
    torch.testing.assert_close(nats, plain)
    torch.testing.assert_close(divergence, apart)
    torch.testing.assert_close(hidden.grad, known.grad)


@torch.no_grad()
def test_the_teacher_is_the_backbone_without_its_adapter() -> None:
    model, ids = make_model(), random_ids(2, 40)
    expected = whole(model, ids)
    model.add_lora(rank=2)
    model.train()
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.3)
    changed = whole(model.eval(), ids)
    model.train()
    torch.testing.assert_close(Teacher(model).states(ids), expected)
    assert model.backbone.training
    torch.testing.assert_close(whole(model.eval(), ids), changed)
    torch.testing.assert_close(Teacher(model, adapted=True).states(ids), changed)
    assert not torch.allclose(changed, expected, atol=1e-3)
    adapter = [parameter for name, parameter in model.backbone.named_parameters() if "lora_" in name]
    assert all(parameter.requires_grad for parameter in adapter)
    model.backbone.requires_grad_(False)
    Teacher(model).states(ids)
    assert not any(parameter.requires_grad for parameter in adapter)


@torch.no_grad()
def test_a_long_sample_is_taught_in_windows_that_overlap() -> None:
    model, ids = make_model(), random_ids(2, 61)
    teacher = Teacher(model)
    teacher._window = 20
    states = teacher.states(ids)
    assert states.shape == (2, 61, 32)
    torch.testing.assert_close(states[:, :20], whole(model, ids[:, :20]))
    torch.testing.assert_close(states[:, 30:40], whole(model, ids[:, 20:40])[:, 10:])
    torch.testing.assert_close(states[:, 60:], whole(model, ids[:, 50:])[:, 10:])


def test_a_memory_learns_from_the_teacher() -> None:
    torch.manual_seed(0)
    model = make_model()
    options = TrainOptions(
        segment_length=20, num_sensory=4, mem_recall_hidden_dim=16, memory_learning_rate=1e-2, stage_1_step=0,
        training_step=40, bptt_depth=4, distillation_weight=5.0,
    )  # fmt: skip
    text = [TokenDocument("a", random_ids(1, 30).repeat(1, 20)[0])]
    history = Training(model, options, keep=False).run(text)["history"]
    first, last = (sum(entry["distillation_loss"] for entry in part) for part in (history[:5], history[-5:]))
    assert last < 0.9 * first


def test_a_run_is_taught_by_the_adapter_where_it_is_asked_to() -> None:
    losses = []
    for teacher in ("backbone", "adapted"):
        torch.manual_seed(0)
        options = TrainOptions(
            segment_length=20, num_sensory=4, mem_recall_hidden_dim=16, learning_rate=3e-2, stage_1_step=0,
            training_step=6, bptt_depth=4, use_lora=True, distillation_weight=1.0, distillation_teacher=teacher,
        )  # fmt: skip
        text = [TokenDocument("a", random_ids(1, 600)[0])]
        model = make_model()
        model.add_lora(rank=4)
        history = Training(model, options, keep=False).run(text)["history"]
        losses.append([entry["distillation_loss"] for entry in history])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)  # an adapter starts as nothing
    assert losses[0][-1] != pytest.approx(losses[1][-1], rel=1e-3)


def test_the_teacher_must_not_be_what_is_trained() -> None:
    with pytest.raises(ValueError, match="distillation_weight"):
        TrainOptions(distillation_weight=1.0, train_backbone=True).check()
    with pytest.raises(ValueError, match="distillation_teacher"):
        TrainOptions(distillation_weight=1.0, distillation_teacher="adapted").check()
