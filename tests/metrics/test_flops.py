"""The floor: matrix products counted from sizes are those that torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmt.metrics.flops import BackboneCost, full_flops, matmul_rate, reading_flops
from hmt.model.backbone import body, head
from tests.conftest import make_backbone, make_model, make_rolling, random_ids


def counted(work: Any) -> int:
    """Floating-point operations that torch counts."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def all_pairs(flops: int, cost: BackboneCost, windows: list[int]) -> int:
    """Operations that torch counts for attention over whole windows, pairs with later tokens included."""
    return flops + sum(cost.pair * (m * m - m * (m + 1) // 2) for m in windows)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt_projected", "gemma2", "phi"])
def test_a_body_and_a_head_cost_what_their_sizes_say(family: str) -> None:
    backbone = make_backbone(family)
    backbone.set_attn_implementation("eager")
    cost = BackboneCost.of(backbone)
    assert cost is not None
    width = make_model(family).embedding_table.shape[1]
    assert counted(lambda: body(backbone, torch.randn(1, 12, width))) == all_pairs(cost.body(12), cost, [12])
    assert counted(lambda: head(backbone, torch.randn(1, 3, width))) == 3 * cost.head


@pytest.mark.parametrize(
    "fields",
    [{}, {"memory_injection": "published", "num_memory_tokens": 2}, {"recall_query": "previous"}, {"mode": "rmt"},
     {"mode": "backbone"}, {"mode": "short_term"}],
    ids=str,
)  # fmt: skip
def test_reading_costs_what_its_windows_summaries_and_recalls_say(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    model.requires_grad_(False).backbone.set_attn_implementation("eager")
    cost = BackboneCost.of(model.backbone)
    assert cost is not None
    config, segments = model.config, 8
    ids = random_ids(1, segments * config.fresh_tokens + 3)
    windows: list[int] = []
    hook = model.backbone.base_model.register_forward_pre_hook(
        lambda _, __, given: windows.extend([given["inputs_embeds"].shape[1]] * given["inputs_embeds"].shape[0]),
        with_kwargs=True,
    )
    torch_counts = counted(lambda: model.remember(ids))
    hook.remove()
    expected = reading_flops(model, ids.shape[1])
    assert expected is not None
    assert torch_counts == all_pairs(expected, cost, windows)
    assert (expected > 0) == (config.mode != "backbone")  # which remembers tokens, and reads nothing for it


def test_a_rolling_cache_costs_what_the_pairs_in_its_window_say() -> None:
    model = make_rolling(read_chunk_tokens=7)
    model.backbone.set_attn_implementation("eager")
    cost, config, length = BackboneCost.of(model.backbone), model.config, 60
    assert cost is not None
    pairs = 0  # that torch counts: every new position with every slot, in sight or not
    attend = model.backbone.base_model.forward

    def noted(**given: Any) -> Any:
        nonlocal pairs
        new = given["inputs_embeds"].shape[1]
        pairs += new * (given["past_key_values"].get_seq_length() + new)
        return attend(**given)

    model.remember(random_ids(1, 1))  # what is done once a model is not counted
    model.backbone.base_model.forward = noted  # type: ignore[method-assign]
    torch_counts = counted(lambda: model.remember(random_ids(1, length)))
    in_sight = sum(
        position - other <= config.sensory_tokens or other < config.sinks
        for position in range(length)
        for other in range(position + 1)
    )
    assert pairs > in_sight
    assert torch_counts - cost.pair * (pairs - in_sight) == reading_flops(model, length)


def test_no_floor_where_tokens_pass_through_some_experts_only() -> None:
    backbone = make_backbone()
    backbone.config.num_local_experts = 4
    assert BackboneCost.of(backbone) is None
    assert full_flops(backbone, 10) is None


def test_the_machine_multiplies_at_some_rate() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32, size=32, rounds=1) > 0
