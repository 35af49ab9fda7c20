"""HMT around a causal LM of transformers: one step, one window, one state.

A text is read in segments. For segment n with fresh tokens X_n the step

    summarizes   S_n = body([T | query tokens | T]) at the trailing T                                        (eq. 1)
    recalls      P_n = softmax((S_n Wq)(bank Wk)^T / sqrt(H)) bank                                        (eqs. 2, 3)
    reads        body([P_n | sensory memory | X_n | P_n])                                                    (eq. 4)
    remembers    M_n, the hidden state at the trailing P_n, and the token ids of the segment, in the bank.

Sensory memory is a rolling cache of keys and values (`sensory="cache"`), or the last K tokens embedded again in front
of each segment, as published (`"reread"`). With a cache and without memory embeddings (R = 0, the default) the step is
reading through a rolling window and keeping token ids; passages of them are recalled for a prompt (`recall`).

Everything that passes between steps is the `MemoryState`; reading, scoring, training and generating are this one step.

Shape legend: B rows, T tokens of a call, l new tokens of a step, L fresh tokens of a segment, J query tokens, K sensory
tokens, R memory embeddings per segment, N bank slots, D embedding size, V vocabulary.

Source: HMT (arXiv:2405.06067), section 3.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer

from hmt.config import MemoryConfig, identity_settings
from hmt.extensions import Extension, enabled_extensions
from hmt.memory.identity import ModelIdentity, weights_digest
from hmt.memory.passages import Passage, SearchTables
from hmt.memory.recall import Memory
from hmt.memory.rows import splice
from hmt.memory.state import MemoryState
from hmt.memory.validation import check_fit
from hmt.model import adapter, checkpoint, generation, losses, sensory, text_recall
from hmt.model.arguments import token_ids
from hmt.model.backbone import body, check_window, embed, embedding_size, head, max_positions, vocabulary_size
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.generation import GenerateOutput
from hmt.model.losses import RETRIEVAL_LOSS_WEIGHT, Supporting
from hmt.model.outputs import HMTOutput, RecallTrace, StepOutput
from hmt.model.segment import Fresh, Query, Recalled, advance_state, append_tokens, batched_queries, segment_query
from hmt.model.stream import Segment, Stream
from hmt.model.window_attention import Geometry
from hmt.text.batches import IGNORED
from hmt.text.encoding import end_token_ids

NEAR_SEGMENTS = 3
"""Recall distances below this are near, as published."""

CHANGEABLE = ("memory.retention.",)
"""Prefixes of weights that may differ between writing a memory and reading it."""


class HMTForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # own generate
    """Any causal LM of transformers that takes `inputs_embeds`, with a hierarchical memory around it.

    Build one with `from_backbone` or `from_pretrained`; the constructor alone gives random weights.

    Attributes:
        backbone: The wrapped causal LM.
        memory: Learned parts of the memory; empty where nothing is learned.
        extensions: Features behind hooks, by name.
        checkpoint_segments: While training, keep only the inputs of each forward pass of the body, and run it again in
            the backward pass.
        token_tables: Words, lines and sentences of a tokenizer for text recall; None searches token ids alone.
        has_key_window: True if the window is a cache of keys and values, False if it is the backbone's own state (as
            of Mamba); None until it was tried.

    Source: HMT (arXiv:2405.06067).
    """

    config_class = HMTConfig
    config: HMTConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _is_stateful = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["memory", "extensions"]  # noqa: RUF012  (transformers' own convention)

    checkpoint_segments = False
    token_tables: SearchTables | None = None
    has_key_window: bool | None = None
    _accepted: ModelIdentity | None = None
    _keys_to_ignore_on_load_unexpected = [r"^adapter\."]  # noqa: RUF012  (transformers' own convention)

    def __init__(
        self, config: HMTConfig, backbone: PreTrainedModel | None = None, trust_backbone_code: bool = False
    ) -> None:
        config.check()
        super().__init__(config)
        if backbone is None:
            backbone = AutoModelForCausalLM.from_config(config.backbone_config, trust_remote_code=trust_backbone_code)
        else:
            for module in backbone.modules():  # what was put into it since it was loaded, an adapter, has weights too
                module._is_hf_initialized = True  # type: ignore[assignment]
        check_window(backbone, config.window)
        self.backbone: PreTrainedModel = backbone
        width = embedding_size(backbone.config)
        self.memory = Memory(config, width)
        self.extensions = enabled_extensions(config, width, vocabulary_size(backbone))
        for extension in self._extensions():
            extension.initialise(backbone)
        self.post_init()
        if backbone.generation_config is not None:
            self.generation_config = copy.deepcopy(backbone.generation_config)

    # The step.

    def step(
        self,
        segment_ids: Tensor,
        state: MemoryState | None = None,
        *,
        segment_mask: Tensor | None = None,
        query: Query | None = None,
        causal: bool = False,
        return_logits: bool = True,
        need_output: bool = True,
    ) -> tuple[StepOutput, MemoryState]:
        """Read the next tokens of each row. Nothing but the arguments goes in, nothing but the result comes out.

        The tokens join those that the state holds of an unfinished segment. A row whose segment is now complete leaves
        it in the bank; the others keep their tokens for the next call.

        Args:
            segment_ids: New tokens, (B, l). With memory embeddings or reread, at most what is left of each row's
                segment; else any number.
            state: What was read before; nothing where None.
            segment_mask: (B, l) bool, real tokens; all where None.
            query: Tokens that the summary reads; those of the segment where None.
            causal: Let the memory prompt depend on earlier tokens alone: until a "prefix" query has its J tokens, it is
                the "previous" one. Generation and the scoring of continuations read so.
            return_logits: Run the head.
            need_output: False to compute nothing that the new state does not need.

        Returns:
            The output and the new state.

        Raises:
            ValueError: If a row gets more tokens than its segment has room for, or the state is that of a model with
                other settings (weights are compared once a call, by `forward`, `remember` and `generate`).
        """
        state = self.initial_state(segment_ids.shape[0]) if state is None else state
        if state.model is not self._accepted or state.batch_size != segment_ids.shape[0]:
            self._check_state(state, segment_ids.shape[0], self.identity(with_weights=False))
            self._accepted = state.model
        ids = segment_ids.long().cpu()
        mask = torch.ones_like(ids, dtype=torch.bool) if segment_mask is None else segment_mask.bool().cpu()
        fresh = append_tokens(self, state, ids, mask)
        if not need_output and not self.config.rolling and not fresh.complete.any():
            return StepOutput.empty(state), advance_state(self, state, fresh, None)
        recalled = self._recall_embeddings(state, fresh, query, causal)
        hidden, left_behind, window = self._read(state, fresh, recalled, ids, mask, need_output)
        logits, extras = self._logits(hidden, ids, mask, state, return_logits and need_output)
        state = replace(state, window=window, asked=recalled.asked, extras=state.extras | extras)
        output = StepOutput(hidden=hidden, logits=logits, **vars(recalled.alone()))
        return output, self._remember(state, fresh, recalled, left_behind)

    def summarize(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Equation 1: body over [T | tokens | T], hidden states at the trailing summary prompt, (B, R, D).

        Args:
            ids: Query tokens, (B, J).
            mask: (B, J) bool.
        """
        assert self.memory.summary_prompt is not None
        tokens = self.embed(ids)
        prompt = self.memory.summary_prompt.to(tokens.dtype).expand(ids.shape[0], -1, -1)
        always = torch.ones(prompt.shape[:2], dtype=torch.bool)
        with record_function("hmt.summary"):
            spliced = splice((prompt, always), (tokens, mask), (prompt, always))
            return spliced.split(self.run_body(spliced.embeddings))[-1]

    def _recall_embeddings(self, state: MemoryState, fresh: Fresh, query: Query | None, causal: bool) -> Recalled:
        """Equations 2 and 3: the memory prompt of the segment at hand."""
        bank, filled = state.bank, state.bank.filled
        mixed, logits, weights, distances = None, None, None, torch.zeros_like(fresh.new)
        near, asked = torch.zeros_like(filled), torch.zeros_like(fresh.new)
        known = self.config.prompt_tokens and bank.valid.shape[1]
        if self.memory.recall is not None and known:
            query = query or segment_query(self, state, fresh, causal)
            summary = self.summarize(query.ids, query.mask) if query.summary is None else query.summary
            asked = query.asked * filled
            with record_function("hmt.recall"):
                mixed, logits = self.memory.recall(summary, bank, self.memory.retention.recall_bias(bank))
            weights = logits.softmax(dim=-1) * filled.to(logits.device)[:, None, None]
            strongest = bank.segments.gather(1, weights.mean(dim=1).argmax(dim=1, keepdim=True).cpu())[:, 0]
            distances = torch.where(filled & (fresh.new > 0), state.segments_read - strongest, distances)
            near = filled & (state.segments_read - strongest < NEAR_SEGMENTS)
            for extension in self._extensions():
                mixed = extension.map_recalled(state, mixed)
        elif known:
            mixed = bank.last(self.config.prompt_tokens)
        table = self.embedding_table
        leading = trailing = table.new_zeros(len(filled), 0, table.shape[1])
        if self.memory.injection is not None:
            leading, trailing = (prompt.to(table.dtype) for prompt in self.memory.injection(mixed, filled))
        return Recalled(
            leading=leading,
            trailing=trailing,
            near=near,
            asked=asked,
            weights=weights,
            recall_logits=logits,
            segments=bank.numbers,
            starts=state.tokens_read - state.pending_counts,
            distances=distances,
        )

    def _read(
        self, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor, need_output: bool
    ) -> tuple[Tensor | None, Tensor, Any]:
        """Equation 4: hidden states of the new tokens (B, l, D), of the trailing prompt (B, R, D), and the window."""
        if not need_output and not self.config.rolling and not self.config.prompt_tokens:
            return None, recalled.trailing, None
        whole = state.window is None and bool((fresh.complete | (fresh.new == 0)).all())
        if self.config.rolling:
            read = sensory.read_rolling
        else:
            read = sensory.read_whole if whole or torch.is_grad_enabled() else sensory.read_part
        with record_function("hmt.read"):
            return read(self, state, fresh, recalled, ids, mask)

    def _logits(
        self, hidden: Tensor | None, ids: Tensor, mask: Tensor, state: MemoryState, return_logits: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits (B, l, V) after hidden states (B, l, D), and what changes in the state of the extensions."""
        adjusting = [extension for extension in self._extensions() if extension.needs_logits]
        extras: dict[str, Tensor] = {}
        if hidden is None or not (return_logits or adjusting):
            return None, extras
        logits = head(self.backbone, hidden)
        for extension in adjusting:
            logits, changes = extension.adjust_logits(logits.float(), ids, mask, state)
            extras |= changes
        return logits, extras

    def _remember(self, state: MemoryState, fresh: Fresh, recalled: Recalled, left_behind: Tensor) -> MemoryState:
        """The state after reading: complete segments are in the bank."""
        if recalled.weights is not None:  # once a segment, however many calls it took
            state = replace(state, bank=state.bank.record_usage(recalled.weights, fresh.complete))
        extras: dict[str, Tensor] = {}
        if fresh.complete.any():
            if not self.config.rolling:
                state = replace(state, window=None, asked=None)
            for extension in self._extensions():
                left_behind, changes = extension.after_segment(state, left_behind, fresh.complete, recalled.near)
                extras |= changes
        after = advance_state(self, state, fresh, left_behind)
        return replace(after, extras=after.extras | extras)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (B, M, D) of ids (B, M), on the model's device."""
        return embed(self.backbone, ids.to(self.embedding_table.device, non_blocking=True))

    def run_body(self, embeddings: Tensor) -> Tensor:
        """Last hidden states (B, M, D) of a window that is read without a cache."""
        recompute = self.checkpoint_segments and self.training
        return body(self.backbone, embeddings, recompute, around=self.around_body)

    def around_body(self) -> ExitStack:
        """Context in which the backbone's body runs."""
        stack = ExitStack()
        for extension in self._extensions():
            stack.enter_context(extension.around_body(self.backbone))
        return stack

    def _extensions(self) -> Iterator[Extension]:
        return iter(self.extensions.values())  # type: ignore[arg-type]

    # Reading texts of any length.

    def steps(
        self,
        stream: Stream,
        state: MemoryState,
        *,
        return_logits: bool = False,
        need_output: bool = True,
        causal: bool = False,
        truncate_every: int | None = None,
        targets: Tensor | None = None,
    ) -> Iterator[tuple[Segment, StepOutput, MemoryState]]:
        """Step through the tokens of a call.

        Args:
            stream: The tokens.
            state: What was read before them.
            return_logits: Run the head.
            need_output: As in `step`.
            causal: As in `step`.
            truncate_every: Detach the state every so many segments.
            targets: (B, T) of the packed tokens; parts without one need no output.
        """
        queries = None
        if self.config.recalls and not causal and "fast" not in state.extras:
            whole = not need_output and not self.config.rolling  # a segment that is not read asks nothing
            queries = batched_queries(self, stream, stream.count(self.config.fresh_tokens, whole=whole))
        for number in itertools.count():
            state = text_recall.recall_for_segment(self, state)
            segment = stream.cut(self._room(state, causal))
            if segment is None:
                return
            if truncate_every and number and number % truncate_every == 0:
                state = state.detach()
            unscored = targets is not None and bool((segment.of(targets, IGNORED) == IGNORED).all())
            output, state = self.step(
                segment.ids,
                state,
                segment_mask=segment.mask,
                query=next(queries, None) if queries else None,
                causal=causal,
                return_logits=return_logits,
                need_output=need_output and not unscored,
            )
            yield segment, output, state

    def _room(self, state: MemoryState, causal: bool) -> Tensor:
        """Tokens of each row that the next step reads at most, (B,) int64."""
        left = self.segment_tokens(state) - state.pending_counts
        if self.config.rolling and not self.config.prompt_tokens:
            if self.config.recall_on == "segment" or torch.is_grad_enabled():
                return left.clamp(max=self.config.read_chunk_tokens)
            return torch.full_like(left, self.config.read_chunk_tokens)
        if causal and self.config.query == "prefix":  # the prompt changes with the J-th token
            ahead = self.query_tokens(state) - 1 - state.pending_counts
            return torch.where((ahead > 0) & state.bank.filled, ahead, left)
        return left

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory: MemoryState | None = None,
        loss_tokens: int | None = None,
        output_recall: bool = False,
        return_logits: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        truncate_every: int | None = None,
        supporting: Supporting | None = None,
        retrieval_loss_weight: float = RETRIEVAL_LOSS_WEIGHT,
        return_dict: bool | None = None,
        **neutral: Any,
    ) -> Any:
        """Read texts of any length and score them.

        Args:
            input_ids: (B, T). Each row is cut into segments from its own first real token.
            attention_mask: (B, T), nonzero at real tokens; padding may stand on either side.
            labels: (B, T), -100 where a token is not scored; a token is predicted from the one before it.
            memory: Go on from here; start anew where None.
            loss_tokens: Score only the last so many tokens of each row.
            output_recall: Return what was recalled.
            return_logits: Return logits (B, T, V). Without, the head runs only where a label is scored.
            num_items_in_batch: Divide the sum of nats by this instead of the number of scored targets, so that
                accumulated gradients are exact.
            truncate_every: Truncated BPTT: detach the memory every so many segments.
            supporting: Segments that hold what is needed, counted from the beginning of the text: (B, S) bool or their
                numbers row by row for each row's last segment; (B, S, S) bool, [b, n, m] where segment m supports
                segment n. Modes without embedding recall have no use for them.
            retrieval_loss_weight: Weight of the retrieval loss, and of the retention loss of a policy that learns;
                0 only reports them.
            return_dict: False returns a tuple.
            neutral: Arguments that libraries pass to any causal LM (`use_cache`, `position_ids`, ...), at values that
                change nothing.

        Returns:
            `HMTOutput`; its `memory` continues the text.

        Raises:
            ValueError: On shapes that do not fit, a row without a token, a memory of another model, or an argument
                that a memory cannot serve; names it.
        """
        input_ids = token_ids(input_ids, neutral)
        state = self.start_state(memory, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        scores = None if labels is None else losses.Scores(self.backbone, stream, labels, loss_tokens)
        wanted = supporting is not None and self.config.recalls
        retrieval = losses.RetrievalLoss(supporting, stream) if wanted else None  # type: ignore[arg-type]
        # Output is wanted of what is not scored too; and processes that train together read the same segments.
        whole = return_logits or output_recall or retrieval is not None or torch.is_grad_enabled()
        logits, hidden, recalled, causal = [], [], [], []
        for segment, output, after in self.steps(
            stream,
            state,
            return_logits=return_logits,
            truncate_every=truncate_every,
            targets=None if scores is None or whole else scores.targets,
        ):
            if retrieval is not None:
                retrieval.add(segment, output, state)
            causal.append(losses.causal_tokens(segment, state, self.config, self.query_tokens(state)))
            state = after
            if return_logits and output.logits is not None and output.hidden is not None:
                logits.append(output.logits)
                hidden.append(output.hidden)
            if scores is not None:
                scores.add(segment, output)
            if output_recall:
                recalled.append(output.alone())
        device = self.embedding_table.device
        result = HMTOutput(memory=state, causal_mask=losses.causal_targets(stream, causal).to(device))
        if return_logits:
            result.logits, result.last_hidden_state = (stream.unpack(stream.join(part)) for part in (logits, hidden))
        losses.combine(
            result, scores, retrieval, self.memory.retention, retrieval_loss_weight, num_items_in_batch, self._unused()
        )
        if output_recall:
            result.recall = RecallTrace.of(recalled)
        result = replace(result)  # keys in the order of the fields: a tuple begins with loss and logits
        return result.to_tuple() if return_dict is False else result

    def _unused(self) -> Tensor | float:
        """Zero, and while training a zero that every parameter of the memory takes part in.

        Texts of one segment recall nothing and leave parameters without a gradient; engines that average gradients over
        processes wait for all of them.
        """
        if not self.training:
            return 0.0
        learned = itertools.chain(self.memory.parameters(), self.extensions.parameters())
        return 0.0 * sum(parameter.sum() for parameter in learned if parameter.requires_grad)

    @torch.no_grad()
    def remember(
        self, input_ids: Tensor, state: MemoryState | None = None, attention_mask: Tensor | None = None
    ) -> MemoryState:
        """Read texts of any length in constant memory, for what they leave behind.

        Args:
            input_ids: (B, T).
            state: Go on from here; start anew where None.
            attention_mask: (B, T), nonzero at real tokens.

        Returns:
            The state after the last token. Reading in two calls, split anywhere, gives the state of reading in one.

        Raises:
            FloatingPointError: If hidden states are not finite.
        """
        state = self.start_state(state, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        read: Tensor | None = None
        for segment, output, after in self.steps(stream, state, need_output=False):
            state, read = after, None if output.hidden is None else output.hidden[segment.mask.to(output.hidden.device)]
        left = [state.bank.embeddings] if read is None else [state.bank.embeddings, read]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in left):
            raise FloatingPointError("what the backbone made of the text is not finite; check its weights and dtype")
        return state

    # Text recall.

    @torch.no_grad()
    def recall(
        self, query_ids: Tensor, memory: MemoryState, attention_mask: Tensor | None = None
    ) -> tuple[MemoryState, tuple[Passage, ...]]:
        """Recall passages of remembered text that answer a query, and put them where the next tokens attend to them.

        With a rolling cache the passages stand between sinks and window, in place of those recalled before. Where
        positions cannot be moved they are read as ordinary tokens.

        Args:
            query_ids: Prompts, (B, J); of a long one the end counts.
            memory: What was read; it stays as it is.
            attention_mask: (B, J), nonzero at real tokens.

        Returns:
            The state to read the prompt with, and the passages, in order of rows, then age.
        """
        return text_recall.recall_text(self, query_ids, memory, attention_mask)

    # Generation: generation.py.

    @torch.no_grad()
    def generate(  # type: ignore[override]  # what is not named goes through kwargs
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        prefix_allowed_tokens_fn: Any = None,
        *,
        inputs: Tensor | None = None,
        memory: MemoryState | None = None,
        attention_mask: Tensor | None = None,
        streamer: BaseStreamer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        earlier_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
        output_recall: bool = False,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue texts.

        Args:
            input_ids: Prompts, (B, T), of any length.
            generation_config: Settings of transformers; the model's own where None.
            logits_processor: Further processors, applied where transformers does, before those of sampling.
            stopping_criteria: Further reasons to stop.
            prefix_allowed_tokens_fn: As in transformers: (row, ids so far) -> allowed next tokens.
            inputs: The same as `input_ids`, under the name that transformers has for it.
            memory: What was read before the prompts; nothing where None. It is left as it is, so that it can be asked
                again.
            attention_mask: (B, T), nonzero at real tokens; padding may stand on either side. Where None, padding
                tokens at the ends of rows are taken for padding, as in transformers: only if no text ends with them.
            streamer: Receives the prompt, then each new token.
            tokenizer: Needed with `stop_strings`.
            earlier_ids: Tokens (B, earlier) that the memory has read already and that settings which look back
                (`repetition_penalty`, `no_repeat_ngram_size`) are to see as a part of the prompt.
            query_ids: Tokens (B, J) to recall passages for, such as the newest user turn; the prompt where None.
            output_recall: Return what was recalled (with `return_dict_in_generate`).
            kwargs: Fields of `GenerationConfig` to override, such as `max_new_tokens` or `temperature`.

        Returns:
            Prompt and new tokens, (B, T + new), or a `GenerateOutput`; with `num_return_sequences` n, B * n rows, those
            of a prompt side by side.

        Raises:
            ValueError: On settings that a memory cannot serve (beams, assisted decoding), inputs that do not fit, and a
                row without a token.
            FloatingPointError: If logits are not finite.
        """
        return generation.generate(
            self,
            inputs if input_ids is None else input_ids,
            memory=memory,
            attention_mask=attention_mask,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            streamer=streamer,
            tokenizer=tokenizer,
            earlier_ids=earlier_ids,
            query_ids=query_ids,
            output_recall=output_recall,
            **kwargs,
        )

    # State.

    def identity(self, with_weights: bool = True) -> ModelIdentity:
        """The model as a memory notes it; the digest of its weights is left out while training."""
        weights = (weight for name, weight in self._stored_tensors() if not name.startswith(CHANGEABLE))
        return ModelIdentity(
            name=self.config.backbone_source or type(self.backbone).__name__,
            width=embedding_size(self.backbone.config),
            settings=identity_settings(self.config),
            weights=weights_digest(weights) if with_weights and not self.training else "",
        )

    def _stored_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the state dict, in its order. `state_dict` would shard parameters again (FSDP2)."""
        for prefix, module in self.named_modules(remove_duplicate=False):
            passing = module._non_persistent_buffers_set
            buffers = {name: buffer for name, buffer in module._buffers.items() if name not in passing}
            for name, tensor in (module._parameters | buffers).items():
                if tensor is not None:
                    yield (f"{prefix}.{name}" if prefix else name), tensor

    def initial_state(self, batch_size: int = 1) -> MemoryState:
        """The state before the first token of `batch_size` texts."""
        weight = self.embedding_table
        state = MemoryState.initial(
            batch_size,
            bank_width=weight.shape[1] if self.config.prompt_tokens else 0,
            longest_segment=self.config.longest_segment,
            tail_tokens=self.config.tail_tokens,
            model=self.identity(),
            device=weight.device,
            dtype=weight.dtype,
        )
        return replace(state, extras=self._initial_extras(batch_size))

    def _initial_extras(self, batch_size: int) -> dict[str, Tensor]:
        """State of the extensions before the first token."""
        extras = [extension.initial_state(batch_size) for extension in self._extensions()]
        return {name: value for one in extras for name, value in one.items()}

    def start_state(self, memory: MemoryState | None, batch_size: int) -> MemoryState:
        """A memory that was given, on this model's device, or the state before the first token.

        Raises:
            ValueError: If the memory is another model's or of another batch, or damaged; names both sides.
        """
        if memory is None:
            return self.initial_state(batch_size)
        self._check_state(memory, batch_size, self.identity())
        check_fit(
            memory,
            width=self.embedding_table.shape[1] if self.config.prompt_tokens else 0,
            longest_segment=self.config.longest_segment,
            tail_tokens=self.config.tail_tokens,
            vocabulary=len(self.embedding_table),
            extras=self._initial_extras(batch_size),
        )
        if bool((memory.pending_counts >= self.segment_tokens(memory)).any()):
            raise ValueError(f"the memory has {int(memory.pending_counts.max())} tokens of an unfinished segment")
        if isinstance(memory.window, dict):
            memory = replace(memory, window=sensory.restore_window(self, memory.window))
        device = self.embedding_table.device
        return memory if memory.bank.embeddings.device == device else memory.to(device)

    def _check_state(self, state: MemoryState, batch_size: int, own: ModelIdentity) -> None:
        if not own.accepts(state.model):
            raise ValueError(f"this memory was written by {state.model}, but the model reading it is {own}")
        if state.batch_size != batch_size:
            raise ValueError(f"memory holds {state.batch_size} row(s), input_ids has {batch_size}")

    def window_tokens(self, state: MemoryState) -> tuple[Tensor, Tensor]:
        """Fresh and sensory tokens of the segment at hand in each row, (B,) int64 each."""
        fresh = torch.full((state.batch_size,), self.config.fresh_tokens)
        sensory = torch.full((state.batch_size,), self.config.sensory_tokens)
        for extension in self._extensions():
            fresh, sensory = extension.window_tokens(state, fresh, sensory)
        return fresh, sensory

    def segment_tokens(self, state: MemoryState) -> Tensor:
        """Fresh tokens of the segment at hand in each row, (B,) int64."""
        return self.window_tokens(state)[0]

    def query_tokens(self, state: MemoryState) -> Tensor:
        """Tokens that the query of the segment at hand reads in each row, (B,) int64."""
        if not self.config.recalls:
            return torch.zeros(state.batch_size, dtype=torch.long)
        return (self.segment_tokens(state) * self.config.sum_fraction).round().long()

    @property
    def geometry(self) -> Geometry:
        """Division of the rolling window."""
        config, limit = self.config, max_positions(self.backbone.config)
        if config.sinks:  # sinks work best near the window: it is moved back to them long before it has to be
            limit = min(limit or 2 * config.window, 2 * config.window)
        if limit is not None:  # a window as long as the backbone's positions is not moved back at every token
            limit = max(limit, config.window + config.window // 4)
        return Geometry(config.sensory_tokens, config.sinks, config.recalled_tokens, limit)

    # Construction, saving and loading: checkpoint.py, adapter.py.

    @classmethod
    def from_backbone(
        cls,
        name_or_path_or_model: str | os.PathLike[str] | PreTrainedModel,
        config: MemoryConfig | None = None,
        *,
        gguf_file: str | None = None,
        dtype: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **config_fields: Any,
    ) -> HMTForCausalLM:
        """Give a causal LM a memory.

        Args:
            name_or_path_or_model: Directory, hub id, built-in name ("smollm2-135m"), or a loaded model, which is then
                shared, not copied.
            config: Memory settings; defaults where None.
            gguf_file: A GGUF file in that directory or repository.
            dtype: torch dtype (or its name) of the backbone; the memory's parameters stay in float32.
            revision: Revision of a hub id.
            trust_remote_code: Run code that comes with the checkpoint.
            config_fields: Fields of `HMTConfig` that override `config`.

        Returns:
            The model. Where `sensory` is left open and the backbone's positions cannot be moved, it is "reread".

        Raises:
            ValueError: If a field is out of range or the model cannot be wrapped; says why.
            OSError: If there is no such model.
        """
        return checkpoint.wrap(
            cls, name_or_path_or_model, config, config_fields, gguf_file=gguf_file, dtype=dtype, revision=revision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, config: Any = None, **kwargs: Any
    ) -> HMTForCausalLM:
        """Load a checkpoint that `save_pretrained` wrote, from a directory or a hub id.

        Args:
            pretrained_model_name_or_path: Directory or hub id.
            args: As in `PreTrainedModel.from_pretrained`.
            config: Configuration to use instead of the checkpoint's.
            kwargs: Fields of `HMTConfig` to change (such as `mode` or `segment_length`), `verify=True` to compare the
                weights with the manifest by SHA-256, and what `PreTrainedModel.from_pretrained` takes.

        Raises:
            OSError: If there is no such checkpoint.
            ValueError: If it is not one of this library, or a field does not fit its weights; names both sides.
        """
        return checkpoint.load(cls, pretrained_model_name_or_path, *args, config=config, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: dict[str, Tensor] | None = None,
        save_backbone: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model.

        Args:
            save_directory: Target directory.
            state_dict: Gathered weights of a sharded model; the model's own where None.
            save_backbone: Write the backbone's weights too. Where None, they are left out if they are frozen, as they
                were when they were loaded, and `config.backbone_source` says from where.
            kwargs: As in `PreTrainedModel.save_pretrained`.
        """
        checkpoint.save(self, save_directory, state_dict=state_dict, save_backbone=save_backbone, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload a checkpoint to the hub; see `PreTrainedModel.push_to_hub`. Returns the URL of the commit."""
        return checkpoint.push(self, repo_id, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights under the names of a checkpoint or of this model; see `torch.nn.Module.load_state_dict`."""
        return adapter.load_weights(self, state_dict, strict, assign)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        """Resize the vocabulary of backbone, memory and configuration; see `PreTrainedModel`."""
        return checkpoint.resize_token_embeddings(self, *args, **kwargs)

    def freeze_backbone(self) -> None:
        """Train the memory's parameters (and an adapter's) only."""
        adapter.freeze_backbone(self)

    def add_lora(
        self, rank: int = 8, alpha: int = 32, dropout: float = 0.1, target_modules: list[str] | str | None = None
    ) -> None:
        """Freeze the backbone and add a LoRA adapter to it through PEFT.

        Args:
            rank: Rank r of the update.
            alpha: The update is scaled by alpha / r.
            dropout: Dropout before the update while training.
            target_modules: Names of the linear layers to adapt, or "all-linear" for all but the head; those usual for
                the backbone's family where None.

        Raises:
            ImportError: If PEFT is not installed; names the extra.
            ValueError: If the backbone has no layers of these names.
        """
        adapter.add_lora(self, rank, alpha, dropout, target_modules)

    @property
    def has_adapter(self) -> bool:
        """True if the backbone carries a PEFT adapter."""
        return adapter.has_adapter(self)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Memory):
            scale = torch.tensor(getattr(self.config.get_text_config(), "initializer_range", None) or 0.02)
            with torch.no_grad():
                module.initialise(torch.zeros(embedding_size(self.backbone.config)), scale)
        elif isinstance(module, Extension):
            with torch.no_grad():
                module.initialise(self.backbone)

    def initialise_memory(self) -> None:
        """Fit a new memory to the backbone's embeddings (needed after wrapping, not after loading)."""
        weight = self.embedding_table
        if weight.is_meta:
            return
        self.extensions.to(weight.device)
        if not len(list(self.memory.parameters())):
            return
        with torch.no_grad():
            table = embed(self.backbone, torch.arange(len(weight), device=weight.device)[None])[0].float()
            bos = None if self.config.bos_marks_turns else self.config.bos_token_id
            neutral = table[bos] if isinstance(bos, int) and bos < len(table) else table.mean(dim=0)
            self.memory.to(weight.device).initialise(neutral, table.pow(2).mean().sqrt())

    def variant(self, **config_fields: Any) -> HMTForCausalLM:
        """The same weights with other settings, over the same backbone.

        Memory parameters are shared wherever the variant has one of the same name and shape; the others are new.

        Args:
            config_fields: Fields of `HMTConfig` to change, such as `mode="rmt"`.
        """
        config = HMTConfig.from_dict(self.config.to_dict() | config_fields)
        config.backbone_config = self.config.backbone_config
        variant = type(self)(config, backbone=self.backbone)
        theirs, own = (
            {name: tensor for name, tensor in model._stored_tensors() if not name.startswith("backbone.")}
            for model in (self, variant)
        )
        shared = [name for name, tensor in own.items() if name in theirs and theirs[name].shape == tensor.shape]
        if len(shared) < len(own):
            variant.initialise_memory()
        for name in shared:
            owner, _, leaf = name.rpartition(".")
            setattr(variant.get_submodule(owner), leaf, theirs[name])
        for name in ("checkpoint_segments", "token_tables", "has_key_window"):
            setattr(variant, name, getattr(self, name))
        return variant.train(self.training)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Adopt a tokenizer's words and end tokens.

        Text recall then finds more, and cuts passages where a line ends. Generation also ends at the tokenizer's end
        tokens.
        """
        self.token_tables = SearchTables(tokenizer, vocabulary_size(self.backbone))
        self.generation_config.eos_token_id = end_token_ids(tokenizer, self.generation_config) or None

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep only the inputs of each forward pass of the body while training, and compute the rest again."""
        self.checkpoint_segments = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations while training."""
        self.checkpoint_segments = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """True if activations are computed again in the backward pass."""
        return self.checkpoint_segments

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embeddings."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The backbone's language-model head."""
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the backbone's language-model head."""
        self.backbone.set_output_embeddings(new_embeddings)

    @property
    def embedding_table(self) -> Tensor:
        """Weights of the token embeddings, (V, D)."""
        table = self.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table


AutoConfig.register(HMTConfig.model_type, HMTConfig)
AutoModelForCausalLM.register(HMTConfig, HMTForCausalLM)
