"""The published program's arrangement of a memory's work, for what is measured against it.

One segment after another; each takes two calls of the whole causal LM, with the hidden states of every layer and the
logits of every position, and the logits of the text are kept until its end. The parameters are those of an
`HMTForCausalLM` with published injection, and so are the results.

Source: the forward pass described in HMT (arXiv:2405.06067, section 3) and the settings of its released program.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt import HMTForCausalLM


class PlainArrangement:
    """Reads with a model's parameters, the plain way.

    Attributes:
        model: Mode hmt, published injection, one memory embedding a segment.
    """

    def __init__(self, model: HMTForCausalLM) -> None:
        config = model.config
        if (
            config.mode != "hmt"
            or config.memory_injection != "published"
            or config.prompt_tokens != 1
            or config.rolling
        ):
            raise ValueError("the plain arrangement is that of mode hmt, published injection, one memory embedding")
        self.model = model

    def read(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of texts (B, T)."""
        config, memory = self.model.config, self.model.memory
        embed: Any = self.model.get_input_embeddings()
        prompt = memory.summary_prompt.to(self.model.backbone.dtype).expand(ids.shape[0], -1, -1)
        initial: Any = memory.injection.initial
        bank: list[Tensor] = []
        logits: list[Tensor] = []
        for start in range(0, ids.shape[1], config.fresh_tokens):
            fresh = embed(ids[:, start : start + config.fresh_tokens])
            sensory = embed(ids[:, max(start - config.sensory_tokens, 0) : start])
            recalled = initial.to(fresh.dtype).expand(ids.shape[0], -1, -1)
            if bank:
                part = fresh[:, : config.summary_tokens]
                summary = self._whole(torch.cat([prompt, part, prompt], dim=1)).hidden_states[-1][:, -1:]
                recalled = self._recall(summary, torch.cat(bank[-config.capacity :], dim=1))
            output = self._whole(torch.cat([recalled, sensory, fresh, recalled], dim=1))
            logits.append(output.logits[:, 1 + sensory.shape[1] : -1])
            bank.append(output.hidden_states[-1][:, -1:])
        return torch.cat(logits, dim=1)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean nats of the tokens of texts (B, T), from the logits of all of them."""
        logits = self.read(ids)[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def _whole(self, embeddings: Tensor) -> Any:
        return self.model.backbone(inputs_embeds=embeddings, output_hidden_states=True)

    def _recall(self, summary: Tensor, bank: Tensor) -> Tensor:
        recall = self.model.memory.recall
        query, keys = recall.wq(summary.to(recall.wq.weight.dtype)), recall.wk(bank.to(recall.wk.weight.dtype))
        weights = (query @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
        return weights.to(bank.dtype) @ bank
