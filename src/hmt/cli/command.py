"""The command line: verbs to functions, nothing else. A user's mistake is one line and exit status 2."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file, check_output_directory, check_output_file
from hmt.cli.listing import TasksOptions
from hmt.cli.writing import ChatOptions, ConvertOptions, GenerateOptions, RememberOptions, ServeOptions
from hmt.evaluation.options import DemoOptions, EvaluateOptions
from hmt.evaluation.profiling import ProfileOptions
from hmt.files import read_yaml
from hmt.harness.options import HarnessOptions
from hmt.options import ModelOptions
from hmt.pretrained import HUB_MAP, checkpoint_settings, locate, same_model
from hmt.published import PublishedOptions
from hmt.report.options import ReportOptions
from hmt.terminal import EscapingFormatter, escaped
from hmt.training.options import TrainOptions

VERBS: dict[str, tuple[type, str]] = {
    "demo": (DemoOptions, "hmt.cli.demo"),
    "train": (TrainOptions, "hmt.cli.train"),
    "evaluate": (EvaluateOptions, "hmt.cli.evaluate"),
    "profile": (ProfileOptions, "hmt.cli.profile"),
    "remember": (RememberOptions, "hmt.cli.remember"),
    "generate": (GenerateOptions, "hmt.cli.generate"),
    "chat": (ChatOptions, "hmt.cli.chat"),
    "serve": (ServeOptions, "hmt.cli.serve"),
    "harness": (HarnessOptions, "hmt.harness.evaluation"),
    "report": (ReportOptions, "hmt.report.publish"),
    "tasks": (TasksOptions, "hmt.cli.tasks"),
    "convert": (ConvertOptions, "hmt.cli.convert"),
}
"""Verb -> its options, and the module whose `run(options)` gives figures and a text."""

HIDDEN = {"published": (PublishedOptions, "hmt.published")}
"""Verbs of other programs: `hmt_src/main.py`."""

PRESETS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "presets").glob("*.yaml"))}
"""Settings that come with the package, for --config by name."""

FIXED = {"model_name", "gguf_file", "revision", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
"""Flags that say what a checkpoint is made of: none may differ from it."""

OK, MISTAKE, NOT_FINITE, INTERRUPTED = 0, 2, 3, 130


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit status: 0 on success, 2 on a user's mistake, 3 when training stopped at a loss that is not finite,
        130 when interrupted.
    """
    verb, *rest = arguments or ["--help"]
    try:
        if verb in ("-h", "--help"):
            sys.stdout.write(_overview())
            return OK
        if verb not in VERBS and verb not in HIDDEN:
            raise ValueError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}")
        chosen = parse(verb, rest)
        _find_early(chosen)
        _quieten(loads_model=verb != "tasks")
        figures, text = import_module((VERBS | HIDDEN)[verb][1]).run(chosen)
        if os.environ.get("RANK", "0") != "0":
            return OK  # of several processes one tells what came out
        if getattr(chosen, "json", None) is not None:
            _write_json(chosen.json, figures)
        if text:
            sys.stdout.write(f"{escaped(text)}\n")
            sys.stdout.flush()
    except BrokenPipeError:
        return OK  # whoever read the output has seen enough
    except (ValueError, OSError, ImportError) as error:
        return _fail(verb, error, MISTAKE)
    except FloatingPointError as error:
        return _fail(verb, error, NOT_FINITE)
    except KeyboardInterrupt:
        with _uninterrupted():
            return _fail(verb, "interrupted", INTERRUPTED)
    return OK


def parse(verb: str, arguments: Sequence[str]) -> Any:
    """The options of a verb: defaults, then a checkpoint's own settings, then --config, then flags.

    Names and places of the hub that they give hold from then on, for the checkpoint as for all that is loaded later.

    Raises:
        ValueError: In one line, if they make no sense.
        OSError: If a file cannot be read.
    """
    import tyro

    kind = (VERBS | HIDDEN)[verb][0]
    flags, config_file = _take_flag(list(arguments), "config")
    settings = _read_yaml(kind, _config_path(config_file)) if config_file else {}
    given = settings.keys() | {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    known = {field.name for field in fields(kind)}
    for name, variable in {"hub_map": HUB_MAP, "cache_dir": "HF_HOME"}.items():
        if name in known and (value := _take_flag(flags, name)[1] or settings.get(name)):
            os.environ[variable] = str(value)  # before anything of the hub is imported
    checkpoint = _take_flag(flags, "load_from_ckpt")[1] or settings.get("load_from_ckpt")
    stored: dict[str, Any] = {}
    if checkpoint and issubclass(kind, ModelOptions | PublishedOptions):
        stored = checkpoint_settings(str(checkpoint))
        inherited = {name: value for name, value in kind.inherited(stored).items() if name in known}
        if given & {"train_backbone", "train_memory_map"}:
            inherited.pop("use_lora", None)
        settings = inherited | settings
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            # Later flags go over earlier ones, and all are checked alike, wherever they come from.
            chosen: Any = tyro.cli(
                kind,
                args=[*_as_flags(settings), *flags],
                prog=f"hmt {verb}",
                description=f"{(kind.__doc__ or '').strip()}\n\nAll flags may stand in a file: --config FILE.yaml. "
                f"Presets go by name: --config {' or '.join(PRESETS)}",
                use_underscores=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_one_line(complaint.getvalue())}; see hmt {verb} --help") from None
    chosen.check()
    for name in stored.keys() & given & FIXED:
        own, theirs = getattr(chosen, name), stored[name]
        if own != theirs and not (name == "model_name" and same_model(own, theirs)):
            raise ValueError(f"{name} is {theirs} in {checkpoint} and cannot be read as {own}")
    return chosen


def _config_path(name: str) -> Path:
    """A file of settings: the user's, or the one that comes with the package under that name."""
    path = Path(name)
    return PRESETS[name] if name in PRESETS and not path.exists() else path


def _as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings of a file as the flags they stand for."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | dict):
            raise ValueError(f"{name} must be a single value, got a {type(value).__name__}")
        elif value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def _find_early(chosen: Any) -> None:
    """Complain of a missing model, task or place to write before torch is imported and work is done."""
    from hmt.text.tasks import find_task

    if getattr(chosen, "save_ckpt", None):
        check_output_directory(chosen.save_ckpt)
    if isinstance(chosen, ConvertOptions):
        check_output_directory(chosen.out)
    elif isinstance(chosen, DemoOptions):
        check_output_file(chosen.out / "demo.png")
    elif isinstance(chosen, RememberOptions):
        check_output_file(chosen.out)
    for name in ("json", "predictions", "plot"):
        if getattr(chosen, name, None):
            check_output_file(getattr(chosen, name))
    for task in (getattr(chosen, "task_name", None), getattr(chosen, "haystack", None)):
        if task:
            find_task(task, getattr(chosen, "split", "train"))
    # A checkpoint was found when its settings were read.
    if getattr(chosen, "model_name", None) and not getattr(chosen, "load_from_ckpt", None):
        locate(chosen.model_name, "model")


def _take_flag(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """The arguments without a flag, and its value (the last one given)."""
    spellings = {f"--{name}", f"--{name.replace('_', '-')}"}
    rest: list[str] = []
    value = None
    queue = iter(arguments)
    for argument in queue:
        flag, equals, given = argument.partition("=")
        if flag in spellings:
            value = given if equals else next(queue, None)
            if not value:
                raise ValueError(f"--{name} needs a value")
        else:
            rest.append(argument)
    return rest, value


def _read_yaml(kind: type, path: Path) -> dict[str, Any]:
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold one setting a line, as in segment_length: 256")
    known = {field.name for field in fields(kind)}
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"{path} sets {', '.join(unknown)}, which is no flag of this verb")
    return settings


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write_text(json.dumps(figures, indent=1, default=str) + "\n")


def _quieten(loads_model: bool) -> None:
    """Keep the terminal for this program's own lines; transformers is imported for it only where it is needed."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(EscapingFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.raiseExceptions = False  # a log on a full disk is no reason for pages of complaint
    for noisy in ("httpx", "httpx2", "urllib3", "datasets", "PIL", "lm_eval", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # DeepSpeed, where it is installed, warns on standard output that there is no GPU, and sets its own level.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    if not loads_model:
        return
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """While this lasts, further interrupts are ignored: impatient users press Ctrl-C several times."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(verb: str, error: BaseException | str, status: int) -> int:
    sys.stderr.write(f"hmt {verb}: {escaped(_one_line(str(error)))}\n")
    return status


def _one_line(message: str) -> str:
    """A message without boxes, rules and line breaks; of a boxed one only the complaint itself."""
    lines = [line.strip("│╭╰─╮╯ \t") for line in message.splitlines()]
    lines = [line for line in lines if line]
    if "╭" in message:
        rule = next((i for i, line in enumerate(message.splitlines()) if line.startswith("│ ──")), len(lines))
        lines = lines[1:rule] if len(lines) > 1 else lines
    return " ".join(lines) or "no reason given"


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(
        f"  {verb.ljust(width)}  {(kind.__doc__ or '').strip().splitlines()[0]}" for verb, (kind, _) in VERBS.items()
    )
    return (
        "usage: hmt VERB [flags]\n\n"
        "A hierarchical memory for any HuggingFace causal language model.\n\n"
        f"verbs:\n{verbs}\n\n"
        "hmt VERB --help lists the flags of a verb; each may also stand in a YAML file given with --config,\n"
        f"which also knows the presets {', '.join(PRESETS)}.\n"
    )
