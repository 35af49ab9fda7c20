"""The model card of a checkpoint: what it is, what it was made from, how to use it."""

from __future__ import annotations

from huggingface_hub import ModelCard, ModelCardData

from hmt.config import MEMORY_FIELDS
from hmt.model.configuration_hmt import HMTConfig
from hmt.pretrained import BUILT_INS

BODY = """
# {title}

A memory (mode `{mode}`) around {base}{revision}, made with `hmt`: the model reads text of any length in segments of
{fresh} new tokens, within a window of {window} positions, and what it has read stays in a memory of constant size.

{contents}

## Use

```python
import hmt
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
memory = model.remember(tokenizer(book, return_tensors="pt").input_ids)  # once
question = tokenizer("What was in the box?", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(question, memory=memory, max_new_tokens=50)[0]))  # any number of times
```

## Memory settings

| setting | value |
|---|---|
{settings}

## Method

He et al., [HMT: Hierarchical Memory Transformer for Efficient Long Context Language
Processing](https://arxiv.org/abs/2405.06067), NAACL 2025.
"""


def model_card(config: HMTConfig, name: str, complete: bool, adapter: bool) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: Of the model.
        name: Hub id or directory of the checkpoint.
        complete: The checkpoint holds the backbone's weights.
        adapter: It holds a LoRA adapter.
    """
    origin = config.backbone_source or getattr(config.backbone_config, "name_or_path", "") or ""
    base = BUILT_INS[origin].hub_id if origin in BUILT_INS else origin
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    parts = ["the memory's parameters"] + ["a LoRA adapter (PEFT's format, in `adapter/`)"] * adapter
    parts += ["all weights of the backbone"] * complete
    contents = f"The checkpoint holds {' and '.join(parts)}."
    if not complete:
        contents += " The backbone was frozen; its weights are loaded from where it comes from."
    data = ModelCardData(
        library_name="hmt",
        pipeline_tag="text-generation",
        tags=["hmt", "memory", "long-context", config.mode],
        base_model=base if is_hub_id else None,
        base_model_relation="adapter" if is_hub_id and not complete else None,
    )
    body = BODY.format(
        title=name.rstrip("/").rsplit("/", 1)[-1],
        mode=config.mode,
        base=_origin(base, is_hub_id) or f"a {config.get_text_config().model_type} model",
        revision=f" at revision `{config.backbone_revision}`" if config.backbone_revision else "",
        fresh=config.fresh_tokens,
        window=config.window,
        contents=contents,
        name=name,
        tokenizer=base if is_hub_id else name,
        settings="\n".join(f"| `{field}` | {getattr(config, field)} |" for field in MEMORY_FIELDS),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _origin(base: str, is_hub_id: bool) -> str:
    """A link to the backbone; of a local directory only its name, since a card is published."""
    return f"[{base}](https://huggingface.co/{base})" if is_hub_id else base.rstrip("/").rsplit("/", 1)[-1]
