"""A causal LM with a memory, as transformers knows it: the forward pass over texts of any length.

Shape legend: B rows, T tokens of a call, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin

from hmt.memory.state import MemoryState
from hmt.model import scoring
from hmt.model.checkpoint import CheckpointedModel
from hmt.model.configuration import HMTConfig
from hmt.model.generation import SegmentGenerator
from hmt.model.outputs import HMTOutput, RecallTrace
from hmt.model.retrieval import RETRIEVAL_LOSS_WEIGHT, RetrievalLoss, Supporting
from hmt.model.stream import Stream


class HMTForCausalLM(CheckpointedModel, SegmentGenerator, GenerationMixin):  # type: ignore[misc]  # own generate
    """Any causal LM of transformers that takes `inputs_embeds`, with a hierarchical memory around it.

    Build one with `from_backbone` or `from_pretrained`; the constructor alone gives random weights.

    Source: HMT (arXiv:2405.06067).
    """

    _is_stateful = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        memory: MemoryState | None = None,
        loss_tokens: int | None = None,
        output_recall: bool = False,
        return_logits: bool = True,
        truncate_every: int | None = None,
        supporting: Supporting | None = None,
        retrieval_loss_weight: float = RETRIEVAL_LOSS_WEIGHT,
        teacher_states: Tensor | None = None,
        distillation_weight: float = 1.0,
    ) -> HMTOutput:
        """Read texts of any length and score them.

        Args:
            input_ids: (B, T). Each row is cut into segments from its own first real token.
            attention_mask: (B, T), nonzero at real tokens; padding may stand on either side.
            labels: (B, T), -100 where a token is not scored; a token is predicted from the one before it.
            memory: Go on from here; start anew where None.
            loss_tokens: Score only the last so many tokens of each row.
            output_recall: Return what was recalled.
            return_logits: Return logits (B, T, V). Without, the head runs only where a label is scored.
            truncate_every: Cut the gradient after every so many segments.
            supporting: Segments that hold what is needed, counted from the beginning of the text: (B, S) bool or their
                numbers row by row for each row's last segment; (B, S, S) bool, [b, n, m] where segment m supports
                segment n. Modes that do not recall have no use for them.
            retrieval_loss_weight: What the retrieval loss counts in the loss, and the retention loss of a policy that
                learns; 0 only reports them.
            teacher_states: Last hidden states (B, T, D) of a teacher with the same head, such as the backbone with all
                of the text before each token. What it predicts where a label is scored is to be learnt too.
            distillation_weight: What the divergence from the teacher counts in the loss.

        Returns:
            `HMTOutput`; its `memory` continues the text.

        Raises:
            ValueError: On shapes that do not fit, a row without a token, or a memory of another model.
        """
        state = self.start_state(memory, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        scores = None
        if labels is not None:
            scores = scoring.Scores(self.backbone, stream, labels, loss_tokens, teacher_states)
        retrieval = RetrievalLoss(supporting, stream) if supporting is not None and self.config.recalls else None
        # Output is wanted of what is not scored too; and processes that train together read the same segments.
        whole = return_logits or output_recall or retrieval is not None or torch.is_grad_enabled()
        logits, recalled, causal = [], [], []
        for segment, output, after in self._steps(
            stream,
            state,
            return_logits=return_logits,
            truncate_every=truncate_every,
            targets=None if scores is None or whole else scores.targets,
        ):
            if retrieval is not None:
                retrieval.add(segment, output, state)
            causal.append(scoring.causal_tokens(segment, state, self.config, self.query_tokens(state)))
            state = after
            if output.logits is not None:
                logits.append(output.logits)
            if scores is not None:
                scores.add(segment, output)
            if output_recall:
                recalled.append(output.alone())
        result = HMTOutput(memory=state, causal_mask=scoring.causal_targets(stream, causal))
        if return_logits:
            result.logits = stream.unpack(stream.join(logits))
        if scores is not None:
            result.nll, result.scored_mask = scores.nll() + self._unused(), scores.scored_mask
            result.loss = result.nll.sum() / result.scored_mask.sum()
            if teacher_states is not None:
                result.distillation_loss = scores.divergence()
                result.loss = result.loss + distillation_weight * result.distillation_loss
        if retrieval is not None:
            known = result.retrieval_loss = retrieval.mean()
            if self.memory.retention.learns:
                result.retention_loss = retrieval.retention(self.memory.retention, state.bank)
                known = known + result.retention_loss
            if result.loss is not None:
                result.loss = result.loss + retrieval_loss_weight * known
        if output_recall:
            result.recall = RecallTrace.of(recalled)
        return result

    def _unused(self) -> Tensor | float:
        """Zero, and while training a zero that every parameter of the memory takes part in.

        Texts of one segment recall nothing and leave parameters without a gradient; engines that average gradients over
        processes wait for all of them.
        """
        if not self.training:
            return 0.0
        return 0.0 * sum(parameter.sum() for parameter in self.memory.parameters() if parameter.requires_grad)


AutoConfig.register(HMTConfig.model_type, HMTConfig)
AutoModelForCausalLM.register(HMTConfig, HMTForCausalLM)
