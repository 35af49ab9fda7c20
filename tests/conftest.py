"""Tiny random models of many families, and a tokenizer of bytes: nothing is downloaded."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine are a hundred times slower
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hmt import HMTForCausalLM
from hmt.training.launch import make_accelerator
from hmt.training.options import TrainOptions

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
gc.freeze()  # a measurement of memory collects garbage first: not among all that the libraries hold

VOCAB = 300
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SMALL, "num_key_value_heads": 2},
    "qwen2": {"model_type": "qwen2", **SMALL, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"model_type": "mistral", **SMALL, "num_key_value_heads": 2, "sliding_window": 16},
    "opt": {"model_type": "opt", **SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "opt_projected": {"model_type": "opt", **SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.0},
    "gpt2": {"model_type": "gpt2", **SMALL, "n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {"model_type": "gpt_neox", **SMALL},
    "gemma2": {"model_type": "gemma2", **SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
               "final_logit_softcapping": 5.0},
    "gemma3": {"model_type": "gemma3_text", **SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "phi": {"model_type": "phi", **SMALL, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "cohere": {"model_type": "cohere", **SMALL, "num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **SMALL, "num_key_value_heads": 2, "logits_scaling": 4.0},
    "mamba": {"model_type": "mamba", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}  # fmt: skip


def make_backbone(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A tiny random causal LM; its weights are large enough for its outputs to differ from token to token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model.eval()


def make_model(family: str = "llama", seed: int = 0, **fields: Any) -> HMTForCausalLM:
    """A tiny model with re-encoded sensory tokens: window 20, 4 sensory tokens, 14 fresh tokens, a summary of 7."""
    small = {"segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "mem_recall_context": 5}
    form = {"sensory": "reread", "num_recalled_tokens": 0, "num_sinks": 0}
    model = HMTForCausalLM.from_backbone(make_backbone(family, seed), **small | form | fields).eval()
    if "dynamic_reading" in model.extensions:  # the identity would hide where it is left out
        with torch.no_grad():
            weight = model.extensions["dynamic_reading"].weight
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def make_rolling(family: str = "llama", seed: int = 0, **fields: Any) -> HMTForCausalLM:
    """A tiny model with a rolling cache: window 24 of 3 sinks, 8 recalled tokens and 12 sensory tokens."""
    small = {"segment_length": 24, "num_sinks": 3, "num_recalled_tokens": 8, "mem_recall_hidden_dim": 16}
    form = {"sensory": "cache"} | ({} if "mem_recall_context" in fields else {"mem_recall_context": 40})
    return HMTForCausalLM.from_backbone(make_backbone(family, seed), **small | form | fields).eval()


def random_ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids (rows, tokens) without special ones."""
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps one state a process; each test begins without."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def model() -> HMTForCausalLM:
    """The tiny Llama with a memory."""
    return make_model()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; ids 0 to 2 are padding, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {symbol: index + 3 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


CHAT_TEMPLATES = {
    "chatml": "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}",
    "eos": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }} A: {% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
}
"""Two ways of writing a conversation down."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of bytes."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama with its tokenizer, as `--model_name` takes it."""
    folder = tmp_path_factory.mktemp("backbone")
    make_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task directory: a text with a repeating theme in each split."""
    folder = tmp_path_factory.mktemp("task")
    for number, split in enumerate(("train", "validation", "test")):
        lines = [f"item {i * (number + 1) % 7} is stored in box {i * 3 % 5}.\n" for i in range(60)]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit status, standard output, standard error."""
    from hmt.cli.command import run

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def scaled_accelerator(options: TrainOptions, factor: float) -> Accelerator:
    """What Accelerate makes of float16 on a GPU, here on a CPU: float16 under autocast, and a scaled loss."""
    accelerator = make_accelerator(options, torch.device("cpu"))
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=factor)
    return accelerator
