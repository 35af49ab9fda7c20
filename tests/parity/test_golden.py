"""Numbers of the published program, reached through `hmt convert` and the public interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hmt import HMTForCausalLM
from hmt.compat.legacy import BACKBONE_PREFIX, MEMORY_NAMES

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
MODES = {"stage1": "short_term"}


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_gives_the_published_numbers(case: str, tmp_path: Path, run_cli: Any) -> None:
    folder = GOLDEN / case
    expected = json.loads((folder / "expected.json").read_text())
    io = load_file(folder / "io.safetensors")
    mode = MODES.get(expected["mode"], expected["mode"])
    prompts = 0 if mode == "backbone" else 1
    status, _, complaint = run_cli(
        "convert", "--state", folder / "reference_state.safetensors", "--backbone", folder / "backbone",
        "--mode", mode, "--segment_length", expected["block_length"] + 2 * prompts + expected["num_sensory"],
        "--num_sensory", expected["num_sensory"], "--mem_recall_hidden_dim", expected["recall_hidden_dim"],
        "--mem_recall_context", expected["memory_capacity"], "--sum_fraction", expected["summary_fraction"],
        "--out", tmp_path / "converted",
    )  # fmt: skip
    assert status == 0, complaint
    model = HMTForCausalLM.from_pretrained(tmp_path / "converted")
    output = model(**{name: io[name] for name in ("input_ids", "attention_mask", "labels")},
                   loss_tokens=expected["loss_tokens"], output_recall=True)  # fmt: skip

    torch.testing.assert_close(output.logits, io["logits"], atol=2e-5, rtol=0)
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    assert output.recall.distances == expected["recall_distance"]

    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norms"].items():
        native = f"memory.{MEMORY_NAMES[name]}" if name in MEMORY_NAMES else name.replace(BACKBONE_PREFIX, "backbone.")
        # Key biases have no gradient but rounding: 5e-9.
        assert gradients[native].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("case", ["llama-hmt", "llama-hmt-overflow"])
def test_the_loss_alone_is_the_same_without_logits(case: str, tmp_path: Path, run_cli: Any) -> None:
    folder = GOLDEN / case
    expected = json.loads((folder / "expected.json").read_text())
    io = load_file(folder / "io.safetensors")
    run_cli(
        "convert", "--state", folder / "reference_state.safetensors", "--backbone", folder / "backbone",
        "--segment_length", expected["block_length"] + 2 + expected["num_sensory"], "--num_sensory",
        expected["num_sensory"], "--mem_recall_hidden_dim", expected["recall_hidden_dim"], "--mem_recall_context",
        expected["memory_capacity"], "--out", tmp_path / "converted",
    )  # fmt: skip
    model = HMTForCausalLM.from_pretrained(tmp_path / "converted", summary_batch_tokens=1)
    output = model(io["input_ids"], labels=io["labels"], loss_tokens=expected["loss_tokens"], return_logits=False)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(expected["loss"], abs=1e-5)
