"""`hmt train`: train a memory in two stages, and keep what was learned."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hmt.atomic import locked_directory, recover_directory
from hmt.files import is_stream
from hmt.model.loading import load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import parse_share
from hmt.report import check_installed
from hmt.text.answers import TokenQuestion, tokenize_questions
from hmt.text.augment import augment, read_enough
from hmt.text.batches import Readable, Sample, tokenize
from hmt.text.documents import Document
from hmt.text.tasks import iter_documents, load_questions, settings_of
from hmt.training import progress
from hmt.training.launch import is_sharded
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from hmt.training.testing import VALIDATION_SAMPLES, evaluate_test_split, held_out

logger = logging.getLogger(__name__)

DEFAULT_TEST_SAMPLES = 100


def run(options: TrainOptions, keep: bool = True) -> tuple[dict[str, Any], str]:
    """Train a model and save its checkpoint.

    Args:
        options: Options of the run.
        keep: Write checkpoints and the record of the run.

    Returns:
        The figures, and a closing line.

    Raises:
        ValueError: If the checkpoint to resume is damaged, or was made with other options.
        OSError: If another run writes the same checkpoint.
        FloatingPointError: If loss or gradient are not finite.
    """
    with ExitStack() as stack:
        if keep and os.environ.get("RANK", "0") == "0":
            stack.enter_context(locked_directory(options.save_ckpt))
        return _train(options, keep)


def test(options: TrainOptions) -> tuple[dict[str, Any], str]:
    """Score samples of the test split without training.

    Returns:
        The figures, and a closing line.
    """
    model, tokenizer = load(options, memory_seed=options.seed)
    texts = _Texts(options, tokenizer, model)
    training = Training(model, options, keep=False)
    return _test(training, texts.test_samples(training), tokenizer)


def _train(options: TrainOptions, keep: bool) -> tuple[dict[str, Any], str]:
    saved = _load_progress(options)
    source = options if saved is None else replace(options, load_from_ckpt=str(options.save_ckpt))
    if options.plot_hist:
        check_installed()
    model, tokenizer = load(source, memory_seed=options.seed)
    texts = _Texts(options, tokenizer, model)
    training = Training(model, options, tokenizer, saved, keep)
    test_samples = texts.test_samples(training) if options.test_step else []  # before hours of training
    validation = texts.validation(training) if options.eval_step else None
    documents = texts.train()
    if isinstance(documents[0], TokenQuestion) and model.config.query == "prefix":
        logger.warning(
            "recall reads the first %d tokens of a segment, in training also if they are the answer: "
            "use --recall_query previous for questions",
            model.config.summary_tokens,
        )
    figures = training.run(documents, validation)
    if figures["interrupted"]:
        training.close()
        return figures, f"stopped at step {figures['steps']}; {_how_to_continue(training)}"
    closing = (
        f"trained {figures['trainable_parameters']:,} parameters (the memory is {figures['extra_percent']:.2f}% of the "
        f"backbone) for {figures['steps']} steps and {figures['tokens']:,} tokens in {figures['seconds']:.0f} s; "
        f"loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f}; "
        f"{f'checkpoint in {options.save_ckpt}' if keep else 'nothing was kept'}"
    )
    if options.test_step:
        figures["test"], line = _test(training, test_samples, tokenizer)
        closing += f"\n{line}"
        training.record.track({"test_loss": figures["test"]["loss"]}, figures["steps"])
    training.close()
    return figures, closing


def _load_progress(options: TrainOptions) -> progress.Saved | None:
    """Load the progress of the run to resume, if there is one."""
    if not options.resume:
        return None
    recover_directory(options.save_ckpt)
    if not progress.can_resume(options.save_ckpt):
        logger.info("no checkpoint in %s yet: starting a new run", options.save_ckpt)
        return None
    saved = progress.load(options.save_ckpt)
    progress.check_same_run(options)
    logger.info("continuing after step %d, from %s", saved.progress.steps, options.save_ckpt)
    return saved


def _how_to_continue(training: Training) -> str:
    if is_sharded(training.model):
        return f"start another run from its weights with --load_from_ckpt {training.options.save_ckpt}"
    return f"repeat the command with --resume to continue from {training.options.save_ckpt}"


def _test(training: Training, samples: list[Sample], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], str]:
    """Score test samples in the mode of the last stage."""
    model = training.stages[-1].variant(training.model)
    found, lines = evaluate_test_split(training.accelerator, model, samples, training.options, tokenizer)
    longest = max(len(sample) for sample in samples)
    targets = f"{found['targets']:,.0f} targets of {len(samples)} samples of up to {longest:,} tokens"
    return found, "\n".join([f"test: loss {found['loss']:.4f}, perplexity {found['ppl']:.2f} over {targets}", *lines])


class _Texts:
    """The splits of the task, as tokens."""

    def __init__(self, options: TrainOptions, tokenizer: PreTrainedTokenizerBase, model: HMTForCausalLM) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._num_embeddings = len(model.embedding_table)
        self._settings = settings_of(options, tokenizer)
        path = Path(options.task_name).expanduser()
        if (path.is_file() or is_stream(path)) and (options.eval_step or options.test_step):
            raise ValueError(
                f"{options.task_name} has one split only: leave out --eval_step and --test_step, or give a directory "
                "with train, validation and test"
            )

    def train(self) -> Sequence[Readable]:
        """Read the training split: questions, or documents of a plain text."""
        options = self._options
        number, share = parse_share(options.train_set_split)
        limit = number or options.max_documents
        if questions := self._questions("train", limit, share):
            return questions
        documents: Iterable[Document] = islice(iter_documents(options.task_name, "train", **self._settings), limit)
        if share < 1:
            every = list(documents)
            documents = every[: math.ceil(share * len(every))]
        tokens = tokenize(documents, self._tokenizer, self._num_embeddings)
        if not tokens:
            raise ValueError(f"{options.task_name} has no text in its train split")
        return augment(tokens, options, self._tokenizer, self._num_embeddings)

    def validation(self, training: Training) -> Sequence[Readable]:
        """Read as much of the validation split as the samples of any stage need."""
        longest = max(stage.sample_tokens(training.model) for stage in training.stages)
        return self._held_out("validation", longest, VALIDATION_SAMPLES)

    def test_samples(self, training: Training) -> list[Sample]:
        """Choose samples of the test split."""
        length = self._options.test_length or training.stages[-1].sample_tokens(training.model)
        count = self._options.test_step or DEFAULT_TEST_SAMPLES
        return held_out(self._held_out("test", length, count), length, count)

    def _held_out(self, split: str, sample_tokens: int, count: int) -> Sequence[Readable]:
        """Read the first `count` questions, or documents up to the `count`th that holds a whole sample."""
        options = self._options
        if questions := self._questions(split, count):
            return questions
        documents = iter_documents(options.task_name, split, **self._settings)
        found = read_enough(documents, options, self._tokenizer, self._num_embeddings, sample_tokens, count)
        if not found:
            raise ValueError(f"{options.task_name} has no text in its {split} split")
        return found

    def _questions(self, split: str, limit: int | None, share: float = 1.0) -> Sequence[Readable]:
        """Read the questions of a split; none if the task is plain text."""
        options = self._options
        questions = load_questions(options.task_name, split, limit=limit, **self._settings)
        if questions and (options.interleave_dataset or options.dilate_dataset):
            raise ValueError("interleave_dataset and dilate_dataset are for text; this task has questions")
        questions = questions[: math.ceil(share * len(questions))]
        return tokenize_questions(questions, self._tokenizer, self._num_embeddings)
