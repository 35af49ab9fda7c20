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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
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
from hmt.memory.bank import NO_TOKEN
from hmt.memory.identity import ModelIdentity, weights_digest
from hmt.memory.passages import Passage, SearchTables, choose_passages, note_use, query_of
from hmt.memory.recall import Memory
from hmt.memory.rows import pack, take
from hmt.memory.state import MemoryState
from hmt.memory.validation import check_fit, fitted_window
from hmt.memory.window import PROMPT, RECALLED, TOKEN, StateWindow, Window
from hmt.model import adapter, checkpoint, generation, losses, restore
from hmt.model.backbone import body, check_window, embed, embedding_size, head, max_positions, vocabulary_size
from hmt.model.compiled import SUMMARIES, CompiledBody
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.generation import GenerateOutput
from hmt.model.losses import RETRIEVAL_LOSS_WEIGHT, Supporting
from hmt.model.outputs import HMTOutput, RecallTrace, StepOutput
from hmt.model.segment import Fresh, Query, Recalled
from hmt.model.splice import splice
from hmt.model.stream import Segment, Stream, groups
from hmt.model.window_attention import Geometry, carry, extend, insert_passages, unsupported
from hmt.text.batches import IGNORED

Outputs = Literal["all", "complete", "none"]
"""Tokens whose output is wanted: all, those of segments that become complete, or none."""

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
        compiled: The compiled body for whole segments with reread; None to run it as it is.
        token_tables: Words, lines and sentences of a tokenizer for text recall; None searches token ids alone.

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
    compiled: CompiledBody | None = None
    token_tables: SearchTables | None = None
    _explicit_window: bool | None = None
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

    # Construction, saving and loading: checkpoint.py.

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
        return restore.load(cls, pretrained_model_name_or_path, *args, config=config, **kwargs)

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
        fitted = True
        for own, theirs in ((variant.memory, self.memory), (variant.extensions, self.extensions)):
            shared = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
            for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
                fitted = fitted and name in shared and shared[name].shape == tensor.shape
        if not fitted:
            variant.initialise_memory()
        for own, theirs in ((variant.memory, self.memory), (variant.extensions, self.extensions)):
            shared = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
            for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
                if name in shared and shared[name].shape == tensor.shape:
                    owner, _, leaf = name.rpartition(".")
                    setattr(own.get_submodule(owner), leaf, shared[name])
        for name in ("checkpoint_segments", "compiled", "token_tables", "_explicit_window"):
            setattr(variant, name, getattr(self, name))
        return variant.train(self.training)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let text recall know words, lines and sentences: it finds more, and cuts passages where a line ends."""
        self.token_tables = SearchTables(tokenizer, vocabulary_size(self.backbone))

    def compile_reading(self) -> None:
        """Compile the body for whole segments with reread; the first segments take long."""
        self.compiled = CompiledBody(self.backbone)

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
            memory = replace(memory, window=self._restored_window(memory.window))
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
        return Geometry(config.sensory_tokens, config.sinks, config.recalled_tokens, limit)

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
        outputs: Outputs = "all",
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
            outputs: Tokens whose output is wanted. Nothing is computed that is not needed.

        Returns:
            The output and the new state.

        Raises:
            ValueError: If a row gets more tokens than its segment has room for, or the state is that of a model with
                other settings (weights are compared once a call, by `forward`, `remember` and `generate`).
        """
        state = self.initial_state(segment_ids.shape[0]) if state is None else state
        self._check_state(state, segment_ids.shape[0], self.identity(with_weights=False))
        ids = segment_ids.long().cpu()
        mask = torch.ones_like(ids, dtype=torch.bool) if segment_mask is None else segment_mask.bool().cpu()
        fresh = self._append_tokens(state, ids, mask)
        if outputs != "all" and not self.config.rolling and not fresh.complete.any():
            return self._nothing(state, fresh), self._advance(state, fresh, None)
        recalled = self._recall_embeddings(state, fresh, query, causal)
        hidden, left_behind, window = self._read(state, fresh, recalled, ids, mask, outputs)
        logits: Tensor | None = None
        extras: dict[str, Tensor] = {}
        adjusting = any(extension.needs_logits for extension in self._extensions())
        if hidden is not None and (adjusting or (return_logits and outputs != "none")):
            logits = head(self.backbone, hidden)
            if adjusting:
                logits = logits.float()
                for extension in self._extensions():
                    logits, changes = extension.adjust_logits(logits, ids, mask, state)
                    extras |= changes
        output = StepOutput(
            hidden=hidden,
            logits=logits,
            weights=recalled.weights,
            recall_logits=recalled.recall_logits,
            segments=recalled.segments,
            starts=recalled.starts,
            distances=recalled.distances,
        )
        state = replace(state, window=window, asked=recalled.asked, extras=state.extras | extras)
        return output, self._remember(state, fresh, recalled, left_behind)

    def _append_tokens(self, state: MemoryState, ids: Tensor, mask: Tensor) -> Fresh:
        """The fresh tokens of the unfinished segment, with new ones added."""
        new = mask.sum(dim=1)
        counts, length = state.pending_counts + new, self.segment_tokens(state)
        spans = self.config.rolling and not self.config.prompt_tokens
        if not spans and bool((counts > length).any()):
            row = int((counts - length).argmax())
            raise ValueError(f"a segment has {int(length[row])} fresh tokens, step was given {int(counts[row])}")
        ids, mask = pack(torch.cat([state.pending_ids, ids], dim=1), torch.cat([state.pending_valid, mask], dim=1))
        return Fresh(ids, mask, new, complete=(counts >= length) & (new > 0))

    def _nothing(self, state: MemoryState, fresh: Fresh) -> StepOutput:
        """The output of a step in which nothing had to be computed."""
        return StepOutput(
            hidden=None,
            logits=None,
            weights=None,
            recall_logits=None,
            segments=state.bank.numbers,
            starts=state.tokens_read - state.pending_counts,
            distances=torch.zeros_like(fresh.new),
        )

    def summarize(self, ids: Tensor, mask: Tensor, comes_again: bool = False) -> Tensor:
        """Equation 1: body over [T | tokens | T], hidden states at the trailing summary prompt, (B, R, D).

        Args:
            ids: Query tokens, (B, J).
            mask: (B, J) bool.
            comes_again: True if more of this shape will come, so that a compiled body is worth its compilation.
        """
        assert self.memory.summary_prompt is not None
        tokens = embed(self.backbone, ids.to(self.embedding_table.device))
        prompt = self.memory.summary_prompt.to(tokens.dtype).expand(ids.shape[0], -1, -1)
        always = torch.ones(prompt.shape[:2], dtype=torch.bool)
        with record_function("hmt.summary"):
            spliced = splice((prompt, always), (tokens, mask), (prompt, always))
            return spliced.split(self._body(spliced.embeddings, comes_again))[-1]

    def _recall_embeddings(self, state: MemoryState, fresh: Fresh, query: Query | None, causal: bool) -> Recalled:
        """Equations 2 and 3: the memory prompt of the segment at hand."""
        bank, filled = state.bank, state.bank.filled
        mixed, logits, weights, distances = None, None, None, torch.zeros_like(fresh.new)
        near, asked = torch.zeros_like(filled), torch.zeros_like(fresh.new)
        known = self.config.prompt_tokens and bank.valid.shape[1]
        if self.memory.recall is not None and known:
            query = query or (self._causal_query(state, fresh) if causal else self._query(state, fresh))
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
            prompts = self.memory.injection(mixed, filled)
            leading, trailing = (prompt.to(table.dtype) for prompt in prompts)
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
        self, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor, outputs: Outputs
    ) -> tuple[Tensor | None, Tensor, Window | StateWindow | None]:
        """Equation 4: hidden states of the new tokens (B, l, D), of the trailing prompt (B, R, D), and the window."""
        nothing = recalled.trailing[:, :0]
        with record_function("hmt.read"):
            if self.config.rolling:
                return self._read_on(state, fresh, recalled, ids, mask)
            if outputs == "none" and not self.config.prompt_tokens:
                return None, nothing, None
            if torch.is_grad_enabled() or (bool((fresh.complete | (fresh.new == 0)).all()) and state.window is None):
                return (*self._read_whole(state, fresh, recalled, ids, mask), None)
            return self._read_part(state, fresh, recalled, ids, mask)

    def _read_on(
        self, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Window | StateWindow]:
        """Read through the rolling window: [sinks | passages | last K tokens | P_n | X_n | P_n]."""
        window = self._rebuilt_window(state) if state.window is None else state.window
        starts = (state.pending_counts == 0) & (fresh.new > 0)
        hidden, window = self._extend(
            window,
            (recalled.leading, starts[:, None].expand(recalled.leading.shape[:2]), PROMPT),
            (self._embed(ids), mask, TOKEN),
            (recalled.trailing, fresh.complete[:, None].expand(recalled.trailing.shape[:2]), PROMPT),
        )
        if self.config.prompt_tokens and isinstance(window, Window):
            window = window.without(PROMPT, fresh.complete)
        return hidden[1], hidden[2], window

    def _read_whole(
        self, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read a window that is not needed again, [P_n | sensory | X_n | P_n], in one pass without a cache."""
        pieces = [*self._window_pieces(state, recalled), (self._embed(ids), mask)]
        spliced = splice(*pieces, (recalled.trailing, fresh.complete[:, None].expand(recalled.trailing.shape[:2])))
        whole = spliced.embeddings.shape[1] == self.config.window
        *_, hidden, left_behind = spliced.split(self._body(spliced.embeddings, comes_again=whole))
        return hidden, left_behind

    def _read_part(
        self, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Window | StateWindow | None]:
        """Read on in the window of an unfinished segment, or build it anew where its prompt has changed."""
        window, pieces = state.window, [(self._embed(ids), mask, TOKEN)]
        if window is None or state.asked is None or not torch.equal(state.asked, recalled.asked):
            window = self._empty_window(state.batch_size)
            pieces = [*((*piece, TOKEN) for piece in self._window_pieces(state, recalled)), *pieces]
        hidden, window = self._extend(window, *pieces)
        left_behind = recalled.trailing
        if fresh.complete.any() and self.config.prompt_tokens:
            complete = fresh.complete[:, None].expand(recalled.trailing.shape[:2])
            (left_behind,), window = self._extend(window, (recalled.trailing, complete, TOKEN))
        return hidden[-1], left_behind, None if fresh.complete.any() else window

    def _window_pieces(self, state: MemoryState, recalled: Recalled) -> list[tuple[Tensor, Tensor]]:
        """The window before new tokens with reread, [P_n | sensory | unfinished segment]: embeddings and masks."""
        wide = state.tail_ids.shape[1]
        sensory = slice(wide - min(self.config.sensory_tokens, wide), None)
        valid = state.tail_valid[:, sensory]
        if valid.shape[1]:
            newest = torch.arange(valid.shape[1] - 1, -1, -1)
            valid = valid & (newest < self.window_tokens(state)[1][:, None])
        always = torch.ones(recalled.leading.shape[:2], dtype=torch.bool)
        tokens = [(state.tail_ids[:, sensory], valid), (state.pending_ids, state.pending_valid)]
        return [(recalled.leading, always), *((self._embed(ids), mask) for ids, mask in tokens)]

    def _extend(
        self, window: Window | StateWindow, *pieces: tuple[Tensor, Tensor, int]
    ) -> tuple[tuple[Tensor, ...], Window | StateWindow]:
        """Feed pieces, each (embeddings (B, m, D), mask (B, m), kind), in one pass: their hidden states, the window."""
        widths = [part.shape[1] for part, _, _ in pieces]
        embeddings = torch.cat([part for part, _, _ in pieces], dim=1)
        mask = torch.cat([valid for _, valid, _ in pieces], dim=1)
        kinds = torch.cat([torch.full((width,), kind) for width, (_, _, kind) in zip(widths, pieces, strict=True)])
        used = mask.any(dim=0)  # columns that some row has
        if not used.any():
            return embeddings.split(widths, dim=1), window
        places = None if used.all() else used.nonzero()[:, 0].to(embeddings.device)
        fed, valid = (embeddings, mask) if places is None else (embeddings[:, places], mask[:, used])
        if isinstance(window, StateWindow):
            with self._around_body():
                hidden, window = carry(self.backbone, window, fed, valid)
        else:
            hidden, window = extend(
                self.backbone, window, fed, self.geometry if self.config.rolling else Geometry(), mask=valid,
                kinds=kinds[used].to(torch.int8), recompute=self.checkpoint_segments and self.training,
                around=self._around_body,
            )  # fmt: skip
        if places is not None:
            hidden = hidden.new_zeros(embeddings.shape).index_copy(1, places, hidden)
        return hidden.split(widths, dim=1), window

    def _empty_window(self, batch_size: int) -> Window | StateWindow:
        """The window before the first token, of the kind that the backbone can extend."""
        if self._explicit_window is None:
            self._explicit_window = not unsupported(self.backbone)
        return Window.empty(batch_size) if self._explicit_window else StateWindow.empty(batch_size)

    def _restored_window(self, tensors: dict[str, Tensor]) -> Window | StateWindow:
        """The window of an exact memory file."""
        token, real = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
        with torch.no_grad():
            _, own = self._extend(self._empty_window(1), (self._embed(token), real, TOKEN))
        limit = self.geometry.limit if self.config.rolling and isinstance(own, Window) else None
        tensors = fitted_window(tensors, own.tensors(), len(tensors["next_position"]), limit)
        if isinstance(own, StateWindow):
            return StateWindow.of(tensors)
        return Window.of(tensors, self.config.get_text_config().num_hidden_layers)

    def _rebuilt_window(self, state: MemoryState) -> Window | StateWindow:
        """The rolling window of a state that holds token ids alone: its last tokens, read once more."""
        window = self._empty_window(state.batch_size)
        if not bool((state.tokens_read > 0).any()):
            return window
        ids, valid = pack(
            torch.cat([state.tail_ids, state.pending_ids], dim=1),
            torch.cat([state.tail_valid, state.pending_valid], dim=1),
        )
        counts, sinks, wanted = valid.sum(dim=1), self.config.sinks, self.config.sinks + self.config.sensory_tokens
        slots = (counts - wanted).clamp(min=0)[:, None] + torch.arange(min(wanted, ids.shape[1]))
        valid = slots < counts[:, None]
        ids = take(ids, slots.clamp(max=ids.shape[1] - 1))
        _, window = self._extend(window, (self._embed(ids[:, :sinks]), valid[:, :sinks], TOKEN))
        if isinstance(window, Window):  # room for passages, where there is text that the window does not hold
            more = state.tokens_read > valid.sum(dim=1)
            window = replace(window, next_position=window.next_position + self.config.recalled_tokens * more)
        for start in range(sinks, ids.shape[1], self.config.read_chunk_tokens):
            part = slice(start, start + self.config.read_chunk_tokens)
            _, window = self._extend(window, (self._embed(ids[:, part]), valid[:, part], TOKEN))
        return window

    def _remember(self, state: MemoryState, fresh: Fresh, recalled: Recalled, left_behind: Tensor) -> MemoryState:
        """The state after reading: complete segments are in the bank."""
        bank = state.bank
        if recalled.weights is not None:  # once a segment, however many calls it took
            state = replace(state, bank=bank.record_usage(recalled.weights, fresh.complete))
        if not self.config.rolling and fresh.complete.any():
            state = replace(state, window=None, asked=None)
        extras: dict[str, Tensor] = {}
        if fresh.complete.any():
            for extension in self._extensions():
                left_behind, changes = extension.after_segment(state, left_behind, fresh.complete, recalled.near)
                extras |= changes
        after = self._advance(state, fresh, left_behind)
        return replace(after, extras=after.extras | extras)

    def _advance(self, state: MemoryState, fresh: Fresh, left_behind: Tensor | None) -> MemoryState:
        """The state after fresh tokens: whole segments move to the bank, the rest stays pending."""
        counts, length = fresh.mask.sum(dim=1), self.segment_tokens(state)
        spans = torch.where(fresh.complete, counts.div(length, rounding_mode="floor"), 0)
        bank, most = state.bank, int(spans.max())
        if most and self.config.segment_slots and left_behind is not None:
            if not self.config.prompt_tokens:
                left_behind = bank.embeddings.new_zeros(len(counts), 1, 0)
            for number in range(most):
                place = number * length[:, None] + torch.arange(bank.tokens.shape[2])
                inside = (place < (number + 1) * length[:, None]) & (place < fresh.ids.shape[1])
                tokens = take(fresh.ids, place.clamp(max=fresh.ids.shape[1] - 1)).masked_fill(~inside, NO_TOKEN)
                bank = bank.append(left_behind, spans > number, state.segments_read + number, tokens)
            if bank.valid.shape[1] > self.config.capacity:
                bank = self.memory.retention.make_room(bank, self.config.capacity)
        done = spans * length
        tail = state.tail_ids.shape[1]
        slots = done[:, None] + torch.arange(tail)
        pending = counts - done
        width = int(pending.max())
        rest = (done[:, None] + torch.arange(width)).clamp(max=max(fresh.ids.shape[1] - 1, 0))
        valid = torch.arange(width) < pending[:, None]
        return replace(
            state,
            bank=bank,
            tail_ids=take(torch.cat([state.tail_ids, fresh.ids], dim=1), slots),
            tail_valid=take(torch.cat([state.tail_valid, fresh.mask], dim=1), slots),
            pending_ids=take(fresh.ids, rest) * valid,
            pending_valid=valid,
            segments_read=state.segments_read + spans,
            tokens_read=state.tokens_read + fresh.new,
        )

    def _extensions(self) -> Iterator[Extension]:
        return iter(self.extensions.values())  # type: ignore[arg-type]

    def _around_body(self) -> ExitStack:
        stack = ExitStack()
        for extension in self._extensions():
            stack.enter_context(extension.around_body(self.backbone))
        return stack

    def _embed(self, ids: Tensor) -> Tensor:
        return embed(self.backbone, ids.to(self.embedding_table.device, non_blocking=True))

    def _body(self, embeddings: Tensor, comes_again: bool) -> Tensor:
        if comes_again and self.compiled is not None and self._may_compile:
            return self.compiled(embeddings)
        recompute = self.checkpoint_segments and self.training
        return body(self.backbone, embeddings, recompute, around=self._around_body)

    @property
    def _may_compile(self) -> bool:
        return not self.training and not torch.is_grad_enabled() and not len(self.extensions)

    # Queries of embedding recall.

    def _query(self, state: MemoryState, fresh: Fresh) -> Query:
        """The tokens that a segment's query reads."""
        if self.config.query == "previous":
            return self._query_before(state)
        count = self.config.longest_summary
        wanted = torch.arange(count) < self.query_tokens(state)[:, None]
        width = min(count, fresh.ids.shape[1])
        mask = fresh.mask[:, :width] & wanted[:, :width]
        return Query(fresh.ids[:, :width], mask, asked=mask.sum(dim=1))

    def _query_before(self, state: MemoryState) -> Query:
        """A query of the last tokens before the segment."""
        count = self.config.longest_summary
        wanted = torch.arange(count - 1, -1, -1) < self.query_tokens(state)[:, None]
        mask = state.tail_valid[:, -count:] & wanted
        return Query(state.tail_ids[:, -count:], mask, asked=torch.zeros(state.batch_size, dtype=torch.long))

    def _causal_query(self, state: MemoryState, fresh: Fresh) -> Query:
        """The query of each row: that of a whole segment once its J tokens are there, before that the "previous" one.

        So the prompt depends on earlier tokens alone, whatever part of them was the user's, was written in an earlier
        call, or stands in another row.
        """
        before = self._query_before(state)
        if self.config.query == "previous":
            return before
        own = self._query(state, fresh)
        missing = before.ids.shape[1] - own.ids.shape[1]
        ids, mask = (F.pad(part, (0, missing)) for part in (own.ids, own.mask))
        ready = mask.sum(dim=1) == self.query_tokens(state)
        rows = ready[:, None]
        return Query(torch.where(rows, ids, before.ids), torch.where(rows, mask, before.mask), own.asked * ready)

    def _queries(self, stream: Stream, segments: int) -> Iterator[Query | None]:
        """The queries of a call's first segments, those of several segments summarized in one call of the body.

        Queries depend on tokens alone, so they need not wait for the memory. The first one is left to the step, which
        knows if there is anything to recall yet.
        """
        yield None
        length, count = self.config.fresh_tokens, self.config.summary_tokens
        own = self.config.query == "prefix"
        rows = stream.ids.shape[0]
        # What is computed again in the backward pass should be no larger than a window.
        recomputed = self.checkpoint_segments and self.training
        positions = self.config.window * rows if recomputed else self.config.summary_batch_tokens
        at_once = max(positions // ((count + 2 * self.config.prompt_tokens) * rows), 1)
        if self.compiled is not None and self._may_compile:
            at_once = min(at_once, SUMMARIES)
        for numbers in groups(1, segments, at_once, few_sizes=not torch.is_grad_enabled()):
            spans = [stream.span(number * length - (0 if own else count), count) for number in numbers]
            ids, mask = (torch.cat(parts) for parts in zip(*spans, strict=True))
            summaries = self.summarize(ids, mask, comes_again=len(spans) == at_once).split(rows)
            for (span_ids, span_mask), summary in zip(spans, summaries, strict=True):
                yield Query(span_ids, span_mask, span_mask.sum(dim=1) * own, summary)

    # Reading texts of any length.

    def steps(
        self,
        stream: Stream,
        state: MemoryState,
        *,
        return_logits: bool,
        outputs: Outputs = "all",
        causal: bool = False,
        truncate_every: int | None = None,
        targets: Tensor | None = None,
    ) -> Iterator[tuple[Segment, StepOutput, MemoryState]]:
        """Step through the tokens of a call; every `truncate_every` segments the state leaves its graph.

        Where `targets` (B, T) of the packed tokens are given, no output is wanted of parts without one.
        """
        queries = None
        if self.config.recalls and not causal and "fast" not in state.extras:
            whole = outputs != "all" and not self.config.rolling  # a segment that is not read asks nothing
            queries = self._queries(stream, stream.count(self.config.fresh_tokens, whole=whole))
        for number in itertools.count():
            state = self._recall_for_segment(state)
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
                outputs="none" if unscored else outputs,
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
        input_ids = _input_ids(input_ids, neutral)
        state = self.start_state(memory, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        scores = None if labels is None else losses.Scores(self.backbone, stream, labels, loss_tokens)
        wanted = supporting is not None and self.config.recalls
        retrieval = losses.RetrievalLoss(supporting, stream) if wanted else None  # type: ignore[arg-type]
        # Output is wanted of what is not scored too; and processes that train together read the same segments.
        whole = return_logits or output_recall or retrieval is not None or torch.is_grad_enabled()
        logits, recalled, causal = [], [], []
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
            if return_logits and output.logits is not None:
                logits.append(output.logits)
            if scores is not None:
                scores.add(segment, output)
            if output_recall:
                recalled.append(output.alone())
        device = self.embedding_table.device
        result = HMTOutput(memory=state, causal_mask=losses.causal_targets(stream, causal).to(device))
        if return_logits:
            result.logits = stream.unpack(stream.join(logits))
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
        """
        state = self.start_state(state, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        for _, _, after in self.steps(stream, state, return_logits=False, outputs="none"):
            state = after
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
        if not self.config.recalled_tokens or not memory.batch_size:
            return memory, ()
        real = torch.ones_like(query_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        queries = [query_of(ids[mask].cpu()) for ids, mask in zip(query_ids, real, strict=True)]
        found = [self._passages(memory, row, query) for row, query in enumerate(queries)]
        passages = [passage for row in found for passage in row]
        return self._with_passages(note_use(memory, passages), found), tuple(passages)

    def _passages(self, state: MemoryState, row: int, query: Tensor) -> list[Passage]:
        config = self.config
        reach = config.sensory_tokens if config.rolling else config.sensory_tokens + int(state.pending_counts[row])
        return choose_passages(
            state, row, query, config.recalled_tokens, reach=reach, sinks=config.sinks, tables=self.token_tables
        )

    def _with_passages(self, state: MemoryState, found: Sequence[Sequence[Passage]]) -> MemoryState:
        """The state whose window holds these passages of each row, and no others."""
        rows = [torch.cat([passage.ids for passage in row]) if row else torch.zeros(0).long() for row in found]
        width = max(len(row) for row in rows)
        ids = torch.stack([F.pad(row, (0, width - len(row))) for row in rows])
        mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        if not self.config.rolling or isinstance(state.window, StateWindow):
            return self.remember(ids, state, mask) if width else state
        window = self._rebuilt_window(state) if state.window is None else state.window
        if isinstance(window, StateWindow):
            return self.remember(ids, replace(state, window=window), mask) if width else state
        if not width:
            return replace(state, window=window.without(RECALLED))
        window = insert_passages(self.backbone, window, self._embed(ids), self.geometry, mask, self._around_body)
        return replace(state, window=window)

    def _recall_for_segment(self, state: MemoryState) -> MemoryState:
        """With `recall_on="segment"`, passages for the segment that begins, asked for with the tokens before it."""
        config = self.config
        if config.recall_on != "segment" or not config.recalled_tokens or not config.rolling:
            return state
        if bool((state.pending_counts > 0).any()) or not bool(state.bank.filled.any()):
            return state
        return self.recall(state.tail_ids[:, -64:], state, state.tail_valid[:, -64:])[0]

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


REFUSED = ("inputs_embeds", "past_key_values", "output_attentions", "output_hidden_states")
"""Arguments of a causal LM that a memory cannot serve at other than neutral values."""

IGNORABLE = ("use_cache", "cache_position", "logits_to_keep", "token_type_ids")
"""Arguments of a causal LM that change nothing here."""


def _input_ids(input_ids: Tensor | None, neutral: dict[str, Any]) -> Tensor:
    """The token ids of a call whose other arguments are neutral.

    Raises:
        ValueError: If one is not; names it.
    """
    for name in REFUSED:
        value = neutral.pop(name, None)
        if value is not None and value is not False:
            raise ValueError(f"{name} cannot be served by a model with a memory; leave it out")
    if input_ids is None:
        raise ValueError("input_ids is missing")
    positions = neutral.pop("position_ids", None)
    if positions is not None:
        expected = torch.arange(input_ids.shape[-1], device=positions.device).expand_as(positions)
        if not torch.equal(positions.long(), expected):
            raise ValueError("position_ids are counted by the memory; leave them out or count from 0")
    for name in IGNORABLE:
        neutral.pop(name, None)
    if neutral:
        raise ValueError(f"forward does not take {', '.join(sorted(neutral))}")
    return input_ids


AutoConfig.register(HMTConfig.model_type, HMTConfig)
AutoModelForCausalLM.register(HMTConfig, HMTForCausalLM)
