"""The floor: matrix products counted from sizes are those that torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hmt.model.peers import CachedText
from torch.utils.flop_counter import FlopCounterMode

from hmt.metrics.flops import BackboneCost, cached_flops, matmul_rate, reading_flops
from hmt.model.backbone import body, head
from tests.conftest import make_backbone, make_model, random_ids


def counted(work: Any) -> int:
    """Floating-point operations that torch counts."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def all_pairs(flops: int, cost: BackboneCost, windows: list[int]) -> int:
    """What torch counts of attention over whole windows: pairs with later tokens, which are not needed, too."""
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
    needed = all_pairs(expected, cost, windows)
    # The first window is as wide as the others, with its sensory tokens missing.
    whole, first = config.segment_length, config.segment_length - config.max_sensory
    wider = cost.body(whole) - cost.body(first) if config.prompt_tokens else 0
    assert torch_counts == needed + wider
    assert (expected > 0) == (config.mode != "backbone")  # which remembers tokens, and reads nothing for it


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (12, 3)])
def test_a_cache_costs_what_its_parts_say(window: int | None, sinks: int) -> None:
    backbone = make_backbone()
    backbone.set_attn_implementation("eager")
    cost = BackboneCost.of(backbone)
    assert cost is not None
    cached = CachedText(backbone, window, sinks)
    got = counted(lambda: cached.read(random_ids(1, 42), 4))
    expected = cached_flops(backbone, 42, window, 4)
    assert expected is not None
    parts = [4] * 10 + [2]
    assert got == all_pairs(expected, cost, parts)


def test_no_floor_where_tokens_pass_through_some_experts_only() -> None:
    backbone = make_backbone()
    backbone.config.num_local_experts = 4
    assert BackboneCost.of(backbone) is None
    assert cached_flops(backbone, 10, None, 5) is None


def test_the_machine_multiplies_at_some_rate() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32, size=32, rounds=1) > 0
