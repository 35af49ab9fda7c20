"""`hmt train`: teach the memory in two stages, and never lose what was learnt."""

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
from hmt.model.loading import load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import parse_share
from hmt.text.answers import TokenQuestion, tokenize_questions
from hmt.text.augment import augment, read_enough
from hmt.text.batches import Readable, Sample, tokenize
from hmt.text.documents import Document
from hmt.text.questions import Question
from hmt.text.tasks import iter_documents, load_questions, settings_of
from hmt.training import progress
from hmt.training.curriculum import Stage
from hmt.training.launch import is_cut_up
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from hmt.training.scoring import held_out
from hmt.training.testing import examine
from hmt.training.watch import flat

logger = logging.getLogger(__name__)

DEFAULT_TEST_SAMPLES = 100


def run(options: TrainOptions, keep: bool = True) -> tuple[dict[str, Any], str]:
    """Load what the options name, train it, and save the checkpoint.

    Args:
        options: Of the run.
        keep: Write checkpoints and the record of the run.

    Returns:
        The figures, and a closing line.

    Raises:
        ValueError: If the checkpoint to resume is damaged, or was made with other settings.
        OSError: If another run writes the same checkpoint.
        FloatingPointError: If loss or gradient are not finite.
    """
    with ExitStack() as stack:
        if keep and os.environ.get("RANK", "0") == "0":
            stack.enter_context(locked_directory(options.save_ckpt))
        return _run(options, keep)


def _run(options: TrainOptions, keep: bool) -> tuple[dict[str, Any], str]:
    saved = _resumed(options)
    source = options if saved is None else replace(options, load_from_ckpt=str(options.save_ckpt))
    model, tokenizer = load(source, memory_seed=options.seed)
    texts = _Texts(options, tokenizer, len(model.embedding_table))
    training = Training(model, options, tokenizer, saved, keep)
    samples = _test_samples(training, texts) if options.test_step else []  # before hours of training
    validation = None
    if options.eval_step:
        longest = max(_sample_tokens(training, stage) for stage in training.stages)
        validation = texts.held_out("validation", longest, options.eval_samples)
    learnt = texts.train()
    config = model.config
    if isinstance(learnt[0], TokenQuestion) and config.query == "prefix":
        logger.warning(
            "an answer within the first %d tokens of its segment is part of what that segment asks the memory with, "
            "and will not be when answers are written: --recall_query previous asks alike in both",
            config.summary_tokens,
        )
    figures = training.run(learnt, validation)
    if figures["interrupted"]:
        return figures, f"stopped at step {figures['steps']}; {_how_to_go_on(training)}"
    closing = (
        f"trained {figures['trainable_parameters']:,} parameters (the memory is {figures['extra_percent']:.2f}% of the "
        f"backbone) for {figures['steps']} steps and {figures['tokens']:,} tokens in {figures['seconds']:.0f} s; "
        f"loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f}; "
        f"{f'checkpoint in {options.save_ckpt}' if keep else 'nothing was kept'}"
    )
    if options.test_step:
        figures["test"], line = _test(training, samples, tokenizer)
        closing += f"\n{line}"
        training.accelerator.log(flat({"test_loss": figures["test"]["loss"]}), step=figures["steps"])
    training.close()
    return figures, closing


def test(options: TrainOptions) -> tuple[dict[str, Any], str]:
    """Score samples of the test split, without training.

    Returns:
        The figures, and a closing line.
    """
    model, tokenizer = load(options, memory_seed=options.seed)
    texts = _Texts(options, tokenizer, len(model.embedding_table))
    training = Training(model, options, tokenizer, keep=False)
    return _test(training, _test_samples(training, texts), tokenizer)


class _Texts:
    """The splits of the task, as tokens."""

    def __init__(self, options: TrainOptions, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        self._settings = settings_of(options, tokenizer)
        if Path(options.task_name).expanduser().is_file() and (options.eval_step or options.test_step):
            raise ValueError(
                f"{options.task_name} is one split: without --eval_step and --test_step, or give a directory with "
                "train, validation and test"
            )

    def train(self) -> Sequence[Readable]:
        """The questions of the train split, or its documents where the task is plain text.

        Raises:
            ValueError: If questions are to be mixed or dilated.
        """
        options = self._options
        number, share = parse_share(options.train_set_split)
        limit = number or options.max_documents
        if questions := self._questions("train", limit):
            return self._tokens(questions[: math.ceil(share * len(questions))])
        documents: Iterable[Document] = islice(iter_documents(options.task_name, "train", **self._settings), limit)
        if share < 1:
            held = list(documents)
            documents = held[: math.ceil(share * len(held))]
        tokens = tokenize(documents, self._tokenizer, self._num_embeddings)
        if not tokens:
            raise ValueError(f"{options.task_name} has no text in its train split")
        return augment(tokens, options, self._tokenizer, self._num_embeddings)

    def held_out(self, split: str, sample_tokens: int, count: int) -> Sequence[Readable]:
        """As much of another split as so many samples can need.

        That is the first `count` questions, or the documents up to the `count`th that holds a whole sample.

        Raises:
            ValueError: If the split has no text.
        """
        options = self._options
        if questions := self._questions(split, count):
            return self._tokens(questions)
        documents = iter_documents(options.task_name, split, **self._settings)
        found = read_enough(documents, options, self._tokenizer, self._num_embeddings, sample_tokens, count)
        if not found:
            raise ValueError(f"{options.task_name} has no text in its {split} split")
        return found

    def _questions(self, split: str, limit: int | None) -> list[Question]:
        options = self._options
        questions = load_questions(options.task_name, split, limit=limit, **self._settings)
        if questions and (options.interleave_dataset or options.dilate_dataset):
            raise ValueError("interleave_dataset and dilate_dataset are for text; this task has questions")
        return questions

    def _tokens(self, questions: Sequence[Question]) -> Sequence[Readable]:
        return tokenize_questions(questions, self._tokenizer, self._num_embeddings)


def _resumed(options: TrainOptions) -> progress.Saved | None:
    """What is to be resumed; the model is then to be loaded from the same place."""
    if not options.resume:
        return None
    recover_directory(options.save_ckpt)
    if not progress.can_resume(options.save_ckpt):
        logger.info("there is nothing to resume in %s yet: starting anew", options.save_ckpt)
        return None
    saved = progress.load(options.save_ckpt)
    progress.check_same_run(options)
    logger.info("going on after step %d, from %s", saved.progress.steps, options.save_ckpt)
    return saved


def _how_to_go_on(training: Training) -> str:
    if is_cut_up(training.model):
        return f"--load_from_ckpt {training.options.save_ckpt} begins another run with its weights"
    return f"the same command with --resume goes on from {training.options.save_ckpt}"


def _test_samples(training: Training, texts: _Texts) -> list[Sample]:
    """Samples of the test split."""
    options = training.options
    length = options.test_length or _sample_tokens(training, training.stages[-1])
    count = options.test_step or DEFAULT_TEST_SAMPLES
    return held_out(texts.held_out("test", length, count), length, count)


def _sample_tokens(training: Training, stage: Stage) -> int:
    """Tokens of a sample of a stage."""
    return stage.segments * stage.reader(training.model).config.fresh_tokens


def _test(training: Training, samples: list[Sample], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], str]:
    """Score samples of the test split, read as the last stage reads."""
    options = training.options
    reader: HMTForCausalLM = training.stages[-1].reader(training.model)
    found, lines = examine(training.accelerator, reader, samples, options, tokenizer)
    longest = max(len(sample) for sample in samples)
    targets = f"{found['targets']:,.0f} targets of {len(samples)} samples of up to {longest:,} tokens"
    return found, "\n".join([f"test: loss {found['loss']:.4f}, perplexity {found['ppl']:.2f} over {targets}", *lines])
