"""Figures with something of everything, and a text that tries to leave its place on the page."""

from __future__ import annotations

from typing import Any

SPANS = [{"document": "book", "first": 0, "end": 64}]
HOSTILE = '</script><script>alert("x")</script><img src="https://example.org/x.png"> & "{{ title }}"'
FIGURES: dict[str, Any] = {
    "spans": SPANS,
    "rows": [
        {"row": row, "context_tokens": n, "ppl": ppl + 0.125, "ppl_low": ppl, "ppl_high": ppl + 1, "ppl_causal": None,
         "accuracy": 0.5, "bytes_kept": 4096, "flops_per_token": 2e8, "note": HOSTILE,
         "tokens_per_second": 400.5, "peak_mb": 812.25,
         "seconds_to_first_token": 0.5, "ms_per_token": 20.5}
        for row, ppl in (("backbone", 30), ("hmt", 28)) for n in (1024, 8192)
    ],
    "recall": [
        {"document": "book", "segment": n, "text": f"text of segment {n} {HOSTILE}", "distance": min(n, 2),
         "weights": [[slot, 0.5 / (slot + 1)] for slot in range(n)]}
        for n in range(5)
    ],
    "recall_distances": {"1": 1, "2": 3},
    "history": [
        {"step": n, "stage": "hmt", "loss": 3.5 - n / 8, "grad_norm": 0.5, "learning_rates": {"memory": 1e-3}}
        for n in range(1, 5)
    ],
    "command": ["hmt", "evaluate", "--task_name", HOSTILE],
    "commit": "0123456789abcdef",
    "environment": {"torch": "2.13.0"},
    "config": {"segment_length": 128, "note": HOSTILE},
}  # fmt: skip
