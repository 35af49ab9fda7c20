"""From a summary to a memory prompt: cross-attention over the bank, and how its result enters the window.

Shape legend: B rows, R memory embeddings per segment, N bank slots, D embedding size, H recall width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init  # leaves alone what a checkpoint has filled

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.retention import RetentionPolicy, retention_policy


class Recall(nn.Module):
    """Mix past memory embeddings by their relevance to this segment.

    Source: HMT (arXiv:2405.06067), equations 2 and 3: two projections, no value or output projection.
    """

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.wq = nn.Linear(width, hidden_dim, bias=False)
        self.wk = nn.Linear(width, hidden_dim, bias=False)

    def forward(self, summary: Tensor, bank: Bank, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Recall.

        Args:
            summary: Segment summary, (B, R, D).
            bank: Past memory embeddings; at least one slot wide.
            bias: Added to the relevance of each slot, (B, N).

        Returns:
            Recalled embeddings (B, R, D), and recall logits (B, R, N) float32, whose softmax are the weights; the
            lowest number where a slot is empty. A row without memory gets what has no meaning; the caller masks it.
        """
        # In float32 whatever the bank's format: in bfloat16 a CPU would keep a kernel for every size the bank has had.
        with torch.autocast(summary.device.type, enabled=False):
            # The key projection is applied to the query, so that a step costs N * D and not N * D * H.
            query = summary.to(self.wq.weight.dtype) @ self.wq.weight.T @ self.wk.weight
            embeddings = bank.embeddings.float()
            logits = query.float() @ embeddings.transpose(1, 2) / self.wq.out_features**0.5
            if bias is not None:
                logits = logits + bias[:, None]
            empty = ~bank.valid.to(logits.device)
            logits = logits.masked_fill(empty[:, None], torch.finfo(logits.dtype).min)
            recalled = logits.softmax(dim=-1) @ embeddings
        return recalled.to(bank.embeddings.dtype), logits


class PublishedInjection(nn.Module):
    """The recalled embedding itself is the prompt, before and after the segment."""

    def __init__(self, prompt_tokens: int, width: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.zeros(prompt_tokens, width))

    def initialise(self, neutral: Tensor, scale: Tensor) -> None:
        """Draw the initial memory with the spread of the token embeddings, as published."""
        init.normal_(self.initial, std=float(scale))

    def forward(self, recalled: Tensor | None, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Leading and trailing prompt, (B, R, D) each; `filled` (B,) says which rows have something recalled."""
        prompt = self.initial.expand(filled.shape[0], -1, -1)
        if recalled is not None:
            prompt = torch.where(filled.to(prompt.device)[:, None, None], recalled.to(prompt.dtype), prompt)
        return prompt, prompt


class GatedInjection(nn.Module):
    """A learned base plus a small, normalised share of the recalled embedding; the trailing prompt is learned.

    A recalled embedding is a last hidden state and can be an order of magnitude larger than a token embedding: put in
    front of a segment as it is, it costs an untrained model more than the memory can give. Here the prompt starts as an
    embedding that the backbone knows, and training decides how much of the memory to let in.
    """

    rms_scale: Tensor

    def __init__(self, prompt_tokens: int, width: int, gain: float) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(prompt_tokens, width))
        self.trailing = nn.Parameter(torch.zeros(prompt_tokens, width))
        self.gain = nn.Parameter(torch.full((1,), gain))  # no scalar: engines that cut parameters up refuse those
        self.projection = nn.Linear(width, width, bias=False)
        self.register_buffer("rms_scale", torch.ones(()))

    def initialise(self, neutral: Tensor, scale: Tensor) -> None:
        """Start from an embedding (D,) the backbone knows and the size of its token embeddings."""
        init.copy_(self.base, neutral.expand_as(self.base))
        init.copy_(self.trailing, neutral + scale * torch.randn_like(self.trailing))
        init.copy_(self.rms_scale, scale)
        init.eye_(self.projection.weight)

    def forward(self, recalled: Tensor | None, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Leading and trailing prompt, (B, R, D) each; `filled` (B,) says which rows have something recalled."""
        rows = filled.shape[0]
        prompt = self.base.expand(rows, -1, -1)
        if recalled is not None:
            values = recalled.to(self.base.dtype)
            normed = values * torch.rsqrt(values.pow(2).mean(dim=-1, keepdim=True) + 1e-12)
            share = self.gain * self.rms_scale * self.projection(normed)
            prompt = prompt + torch.where(filled.to(share.device)[:, None, None], share, torch.zeros_like(share))
        return prompt, self.trailing.expand(rows, -1, -1)


class Memory(nn.Module):
    """Every learned part of the memory: prompts, and with recall the summary prompt, the projections and the policy.

    Only what the mode uses exists, so that no parameter stays without a gradient.
    """

    def __init__(self, config: MemoryConfig, width: int) -> None:
        super().__init__()
        self.summary_prompt: nn.Parameter | None = None
        self.recall: Recall | None = None
        policy = retention_policy(config.memory_policy if config.keeps_bank else "fifo")
        self.retention: RetentionPolicy = policy(config, width if config.prompt_tokens else 0)
        self.injection: PublishedInjection | GatedInjection | None = None
        if config.prompt_tokens and config.memory_injection == "gated":
            self.injection = GatedInjection(config.prompt_tokens, width, config.memory_gain)
        elif config.prompt_tokens:
            self.injection = PublishedInjection(config.prompt_tokens, width)
        if config.recalls:
            self.summary_prompt = nn.Parameter(torch.zeros(config.prompt_tokens, width))
            self.recall = Recall(width, config.mem_recall_hidden_dim)

    def initialise(self, neutral: Tensor, scale: Tensor) -> None:
        """Fit a new memory to its backbone.

        Args:
            neutral: An embedding that does not disturb the backbone, (D,): that of BOS, or the mean embedding.
            scale: Root mean square of the token embeddings, a scalar.
        """
        if self.injection is not None:
            self.injection.initialise(neutral, scale)
        if self.summary_prompt is not None:
            init.normal_(self.summary_prompt, std=float(scale))
        if self.recall is not None:
            init.kaiming_uniform_(self.recall.wq.weight, a=5**0.5)
            init.kaiming_uniform_(self.recall.wk.weight, a=5**0.5)
        self.retention.initialise()
