"""Time and memory of a block, and times of marked parts."""

from __future__ import annotations

import time

import pytest
import torch
from torch.autograd.profiler import record_function

from hmt.metrics.resources import STATUS, Meter, PartTimes


def test_marked_stretches_are_told_apart_and_the_first_block_only_warms_up() -> None:
    times = PartTimes(most=2)
    assert str(times) == "nothing was measured"
    for seconds in (0.5, 0.02, 0.04, 0.5):
        with times.measure():
            for part in ("read", "head"):
                with record_function(f"hmt.{part}"):
                    time.sleep(seconds / (1 if part == "read" else 2))
            with record_function("hmt.something else"):
                time.sleep(0.01)
    found = times.result()
    assert found["measured"] == 2
    assert found["read_seconds"] == pytest.approx(0.03, rel=0.5)
    assert found["head_seconds"] < found["read_seconds"]
    assert set(found) == {"measured", "read_seconds", "head_seconds"}
    assert str(times).startswith("read ")


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not report peak memory")
def test_the_meter_sees_what_a_block_takes() -> None:
    with Meter(torch.device("cpu")) as small:
        pass
    with Meter(torch.device("cpu")) as large:
        torch.ones(50_000_000).sum()
    assert large.seconds > small.seconds >= 0
    assert large.peak_mb - small.peak_mb > 150
