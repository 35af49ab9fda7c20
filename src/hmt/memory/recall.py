"""From a summary to a memory prompt: cross-attention over the bank, and how its result enters the window.

Shape legend: B rows, R memory embeddings per segment, N bank slots, D embedding size, H recall width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init  # leaves alone what a checkpoint has filled

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.copying import Copying
from hmt.memory.retention import RetentionPolicy, retention_policy


class Nearness(nn.Module):
    """A learned preference for recent segments, and for the embedding that stands where the asking one does.

    Content alone cannot say "the segment before this one", which is what helps most where a text goes on. So the
    logarithm of a slot's age in segments, and which of its segment's R embeddings it holds, count too: prompt r starts
    with embedding r of the last segment and little of the others, and learns how far to look back. The logarithm leaves
    far segments within reach of content, whatever their number.
    """

    def __init__(self, prompt_tokens: int, strength: float) -> None:
        super().__init__()
        self.start = strength
        self.strength = nn.Parameter(torch.full((prompt_tokens,), strength))
        self.place = nn.Parameter(strength * torch.eye(prompt_tokens))

    def initialise(self) -> None:
        """Start as near as the settings say."""
        init.constant_(self.strength, self.start)
        init.copy_(self.place, self.start * torch.eye(len(self.place)))

    def forward(self, bank: Bank) -> Tensor:
        """What is added to the recall logits, (B, R, N) float32; anything at empty slots."""
        newest = bank.segments.masked_fill(~bank.valid, -1).amax(dim=1, keepdim=True)
        age = (newest - bank.segments + 1).clamp(min=1).float().log()
        # Counted from a segment's end, since the oldest may have lost its first embeddings.
        slots = torch.arange(bank.valid.shape[1], device=age.device)
        ends = F.pad(bank.starts[:, 1:], (0, 1), value=True)
        end = slots.masked_fill(~ends, len(slots)).flip(1).cummin(dim=1).values.flip(1)
        place = (len(self.place) - 1 - (end - slots)).clamp(min=0)
        return self.place.float().T[place].transpose(1, 2) - self.strength.float()[None, :, None] * age[:, None]


class Recall(nn.Module):
    """Mix past memory embeddings by their relevance to this segment.

    Source: HMT (arXiv:2405.06067), equations 2 and 3: two projections, no value or output projection.

    Attributes:
        nearness: Added to the relevance, where the model was made with it.
        uniform: Weigh all filled slots alike: a control that shows what the choice of slots is worth.
    """

    uniform = False

    def __init__(self, width: int, hidden_dim: int, nearness: Nearness | None = None) -> None:
        super().__init__()
        self.wq = nn.Linear(width, hidden_dim, bias=False)
        self.wk = nn.Linear(width, hidden_dim, bias=False)
        self.nearness = nearness

    def logits(self, summary: Tensor, bank: Bank, bias: Tensor | None = None) -> Tensor:
        """Relevance of each slot, (B, R, N) float32; the lowest number where a slot is empty.

        The key projection is applied to the query, (S Wq Wk^T) M^T, so a step costs N * D and not N * D * H.

        Args:
            summary: Segment summary, (B, R, D).
            bank: Past memory embeddings.
            bias: Added to the relevance of each slot, (B, N).
        """
        hidden_dim = self.wq.out_features
        with torch.autocast(summary.device.type, enabled=False):
            query = summary.to(self.wq.weight.dtype) @ self.wq.weight.T @ self.wk.weight
            scores = query.float() @ bank.embeddings.float().transpose(1, 2) / hidden_dim**0.5
        if bias is not None:
            scores = scores + bias[:, None]
        if self.nearness is not None:
            scores = scores + self.nearness(bank)
        if self.uniform:
            scores = torch.zeros_like(scores)
        return scores.masked_fill(~bank.valid[:, None], torch.finfo(scores.dtype).min)

    def forward(self, summary: Tensor, bank: Bank, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Recall.

        Args:
            summary: Segment summary, (B, R, D).
            bank: Past memory embeddings; at least one slot wide.
            bias: Added to the relevance of each slot, (B, N).

        Returns:
            Recalled embeddings (B, R, D) and recall logits (B, R, N), float32, whose softmax are the weights. A row
            without memory gets what has no meaning; the caller masks it.
        """
        logits = self.logits(summary, bank, bias)
        # In float32 whatever the bank's format: in bfloat16 a CPU would keep a kernel for every size the bank has had.
        with torch.autocast(summary.device.type, enabled=False):
            recalled = logits.softmax(dim=-1) @ bank.embeddings.float()
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
            prompt = torch.where(filled[:, None, None], recalled.to(prompt.dtype), prompt)
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
            prompt = prompt + torch.where(filled[:, None, None], share, torch.zeros_like(share))
        return prompt, self.trailing.expand(rows, -1, -1)


class MemoryMap(nn.Module):
    """Carries memory embeddings between the two reading speeds: a learned linear map and its inverse.

    The bank holds the embeddings of both speeds in the space of the normal one: what is recalled for a segment that is
    read fast goes through the map, what such a segment leaves behind through its inverse.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def initialise(self) -> None:
        """Start as the identity."""
        init.eye_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Memory embeddings (B, R, D) of the normal speed, as those of the fast one."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings.float() @ self.weight.float().T).to(embeddings.dtype)

    def inverse(self, embeddings: Tensor) -> Tensor:
        """Memory embeddings (B, R, D) of the fast speed, as those of the normal one."""
        with torch.autocast(embeddings.device.type, enabled=False):
            flat = embeddings.float().flatten(0, 1)
            solved = torch.linalg.solve(self.weight.float().T, flat, left=False)
        return solved.view_as(embeddings).to(embeddings.dtype)


class Memory(nn.Module):
    """Every learned part of the memory: prompts, and with recall the summary prompt, the projections and the policy.

    Only what the mode uses exists, so that no parameter stays without a gradient.
    """

    def __init__(self, config: MemoryConfig, width: int, vocabulary: int = 0) -> None:
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
            nearness = Nearness(config.prompt_tokens, config.recall_recency) if config.recall_recency else None
            self.recall = Recall(width, config.mem_recall_hidden_dim, nearness)
        self.memory_map = MemoryMap(width) if config.speed_tokens else None
        self.copying = Copying(config.copied_context, vocabulary) if config.copied_context else None

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
            if self.recall.nearness is not None:
                self.recall.nearness.initialise()
        if self.memory_map is not None:
            self.memory_map.initialise()
        if self.copying is not None:
            self.copying.initialise()
        self.retention.initialise()
