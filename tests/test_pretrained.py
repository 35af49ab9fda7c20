"""Where models come from, with and without a hub."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from hmt import HMTForCausalLM, pretrained
from hmt.pretrained import BUILT_INS, BuiltIn, Location, hub_is_reachable, load_backbone, load_tokenizer, locate
from tests.conftest import byte_tokenizer, make_backbone


def test_a_directory_is_itself(backbone_dir: Path) -> None:
    assert locate(str(backbone_dir), "model") == Location(str(backbone_dir), local=True)
    assert load_backbone(str(backbone_dir)).config.model_type == "llama"
    assert load_tokenizer(str(backbone_dir)).encode("a") == load_tokenizer(str(backbone_dir)).encode("a")


def test_the_built_in_backbone_is_found_without_importing_its_package() -> None:
    path = BUILT_INS["smollm2-135m"].gguf_path()
    assert path is not None
    assert path.stat().st_size > 90e6


def test_without_package_and_hub_there_is_one_clear_line_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_INS, "smollm2-135m", BuiltIn("no_such_package", "x.gguf", "nobody/SmolLM2"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://192.0.2.1")  # reserved for documentation: never answers
    started = time.perf_counter()
    with pytest.raises(OSError, match="smollm2-135m"):
        load_backbone("smollm2-135m")
    assert time.perf_counter() - started < 3


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained.threading, "Thread", None)
    assert not hub_is_reachable()


@pytest.mark.parametrize("name", ["/no/such", "./no", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        locate(name, "model")


def test_a_name_that_no_hub_can_have_is_refused() -> None:
    with pytest.raises(OSError, match="what is this"):
        locate("what is this?", "model")


@pytest.mark.parametrize(
    ("template", "marks"),
    [(None, False), ("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", False),
     ("{% for m in messages %}<s>{{ m['role'] }}{{ m['content'] }}{% endfor %}", True)],
)  # fmt: skip
def test_a_bos_that_marks_turns_is_no_neutral_prompt(template: str | None, marks: bool, tmp_path: Path) -> None:
    make_backbone().save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    model = HMTForCausalLM.from_backbone(tmp_path, num_memory_tokens=1)
    table = model.embedding_table
    expected = table.mean(dim=0) if marks else table[model.config.bos_token_id]
    torch.testing.assert_close(model.memory.injection.base[0], expected)
    model.save_pretrained(tmp_path / "saved")
    assert HMTForCausalLM.from_pretrained(tmp_path / "saved").config.bos_marks_turns is marks


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (401, "hf auth login"),
        (403, "hf auth login"),
        (429, "429"),
        (OSError(errno.ENOSPC, "No space left on device"), "HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "HF_HOME"),
    ],
    ids=str,
)
def test_what_a_hub_or_a_disk_refuses_is_one_line_with_a_remedy(
    error: int | OSError, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers wraps it: an error of its own, with the cause behind it."""

    def refuse(*_: object, **__: object) -> None:
        cause = error
        if isinstance(error, int):
            cause = OSError(f"{error} Client Error\nmore of it")
            cause.response = SimpleNamespace(status_code=error)
        raise OSError("There was a problem\nand a long explanation") from cause

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(pretrained, "locate", lambda *_: Location("someone/model", local=False))
    with pytest.raises(OSError, match="someone/model") as caught:
        load_backbone("someone/model")
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_can_stand_for_a_directory(backbone_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_HUB_MAP", f"someone/model={backbone_dir}, other/thing=/nowhere")
    assert locate("someone/model", "model") == Location(str(backbone_dir), local=True)
    monkeypatch.setenv("HMT_HUB_MAP", "someone/model")
    with pytest.raises(ValueError, match=r"hub_map.*someone/model"):
        locate("someone/model", "model")
