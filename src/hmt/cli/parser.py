"""Flags, settings files and checkpoints to the options of a verb, and the help of its flags."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from hmt.atomic import check_output_directory, check_output_file
from hmt.cli.verbs import PRESETS, PUBLISHED, VERBS
from hmt.config import MemoryConfig
from hmt.files import read_yaml
from hmt.options import (
    AugmentOptions,
    HubOptions,
    ModelOptions,
    OutputOptions,
    SamplingOptions,
    TaskOptions,
)
from hmt.pretrained import HUB_MAP, checkpoint_settings, locate, same_model
from hmt.training.options import OptimizationOptions, RunOptions, TrainingTextOptions

FIXED = {"model_name", "gguf_file", "revision", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
"""Flags that describe the weights in a checkpoint: none may differ from it."""

GROUPS: dict[type, str] = {
    ModelOptions: "model", HubOptions: "model", MemoryConfig: "memory",
    TaskOptions: "data", AugmentOptions: "data", TrainingTextOptions: "data", SamplingOptions: "decoding",
    OptimizationOptions: "optimization", RunOptions: "output", OutputOptions: "output",
}  # fmt: skip
"""Heading in the help of the flags that a class defines; those of a verb's own class come first."""

MOST_USED = ("task_name", "max_new_tokens", "do_sample", "model_name", "load_from_ckpt", "segment_length", "json")
"""Flags that a verb's short help shows besides its own."""


def parse(verb: str, arguments: Sequence[str]) -> Any:
    """Build the options of a verb: defaults, then a checkpoint's own settings, then --config, then flags.

    `hub_map` and `cache_dir` take effect at once, for the checkpoint as for all that is loaded later.

    Raises:
        ValueError: In one line, if they make no sense.
        OSError: If a file cannot be read.
        SystemExit: After showing help.
    """
    if verb not in VERBS | PUBLISHED:
        raise ValueError(f"unknown verb {verb!r}; the verbs are {', '.join(VERBS)}")
    kind: Any = (VERBS | PUBLISHED)[verb].options_class
    if "--help" in arguments or "-h" in arguments:
        show_help(verb, kind, every_flag=arguments[-1] == "all")
    flags, config_file = _take_flag(list(arguments), "config")
    settings = _read_settings(kind, config_file) if config_file else {}
    given = settings.keys() | {flag[2:].partition("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    known = {one.name for one in fields(kind)}

    def chosen(name: str) -> str | None:
        """Value of a flag or setting before all are parsed."""
        value = _take_flag(flags, name)[1] or settings.get(name)
        return str(value) if value and name in known else None

    for name, variable in {"hub_map": HUB_MAP, "cache_dir": "HF_HOME"}.items():
        if value := chosen(name):
            os.environ[variable] = value  # before anything of the hub is imported
    stored: dict[str, Any] = {}
    checkpoint = chosen("load_from_ckpt")
    if checkpoint:
        stored = checkpoint_settings(checkpoint)
        inherited = {name: value for name, value in kind.inherited(stored).items() if name in known}
        if given & {"train_backbone", "train_memory_map"}:
            inherited.pop("use_lora", None)
        settings = inherited | settings
    elif baseline_of := chosen("match_budget"):
        from hmt.training.matching import matched_settings

        settings = matched_settings(baseline_of, chosen("mode") or "backbone") | settings
    options = _parse_flags(verb, kind, [*_as_flags(settings), *flags])
    options.check()
    for name in stored.keys() & given & FIXED:
        own, theirs = getattr(options, name), stored[name]
        if own != theirs and not (name == "model_name" and same_model(own, theirs)):
            raise ValueError(f"{name} is {theirs} in {checkpoint} and cannot be read as {own}")
    return options


def check_early(options: Any) -> None:
    """Look for a missing model or task, or a place that cannot be written, before torch is imported.

    Raises:
        OSError: If something is missing or cannot be written.
        ValueError: If the task has no such split.
    """
    from hmt.text.tasks import find_task

    if getattr(options, "save_ckpt", None):
        check_output_directory(options.save_ckpt)
    if hasattr(options, "check_outputs"):
        options.check_outputs()
    for name in ("json", "predictions", "plot"):
        if getattr(options, name, None):
            check_output_file(getattr(options, name))
    for task in (getattr(options, "task_name", None), getattr(options, "haystack", None)):
        if task:
            find_task(task, getattr(options, "split", "train"))
    # A checkpoint was found when its settings were read.
    if getattr(options, "model_name", None) and not getattr(options, "load_from_ckpt", None):
        locate(options.model_name, "model")


def _parse_flags(verb: str, kind: type, flags: list[str]) -> Any:
    """Let tyro parse flags; later ones go over earlier ones."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=flags, prog=f"hmt {verb}", use_underscores=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(f"{_complaint(complaint.getvalue())}; see hmt {verb} --help all") from None


def _complaint(message: str) -> str:
    """The complaint itself out of tyro's box."""
    lines = [line.strip("│╭╰─╮╯ \t") for line in message.splitlines()]
    end = next((i for i, line in enumerate(message.splitlines()) if line.startswith("│ ──")), len(lines))
    return " ".join(line for line in lines[1:end] if line)


def _take_flag(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """Return the arguments without a flag, and its last value."""
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


def _read_settings(kind: type, name: str) -> dict[str, Any]:
    """Read a settings file of the user, or the preset of that name."""
    path = Path(name)
    if name in PRESETS and not path.exists():
        path = PRESETS[name]
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold one setting a line, as in segment_length: 256")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    if unknown := sorted(settings.keys() - {one.name for one in fields(kind)}):
        raise ValueError(f"{path} sets {', '.join(unknown)}, which is no flag of this verb")
    return settings


def _as_flags(settings: dict[str, Any]) -> list[str]:
    """Turn settings into the flags they stand for, so that all are checked alike."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | dict):
            raise ValueError(f"{name} must be a single value, got a {type(value).__name__}")
        elif value is not None:
            flags += [f"--{name}", str(value)]
    return flags


def show_help(verb: str, kind: type, every_flag: bool) -> None:
    """Show the flags of a verb under headings, or the most used ones.

    Raises:
        SystemExit: When done.
    """
    names = _most_used(kind)
    ordered = sorted(fields(kind), key=lambda one: names.index(one.name) if one.name in names else len(names))
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    if every_flag:
        for heading in dict.fromkeys([f"hmt {verb}", *GROUPS.values()]):
            found = [_described(kind, one) for one in ordered if (_heading(kind, one.name) or f"hmt {verb}") == heading]
            groups |= {heading: found} if found else {}
    else:
        groups["most used"] = [_described(kind, one) for one in ordered if one.name in names]
    hidden = 0 if every_flag else len(ordered) - len(names)
    more = f"hmt {verb} --help all shows {hidden} more flags. " if hidden else ""
    nested = [
        (f"group_{number}", Annotated[make_dataclass("Group", flags, kw_only=True), tyro.conf.arg(name=heading)])
        for number, (heading, flags) in enumerate(groups.items())
    ]
    tyro.cli(
        tyro.conf.OmitArgPrefixes[make_dataclass("Flags", nested)],  # type: ignore[misc]
        args=["--help"],
        prog=f"hmt {verb}",
        description=f"{inspect.getdoc(kind)}\n\n{more}Flags may also stand in a YAML file: --config FILE. "
        f"Presets: --config {', '.join(PRESETS)}.",
        use_underscores=True,
    )


def _most_used(kind: type) -> list[str]:
    """Names of the flags in the short help of a verb: its own choice, or the flags it defines and some shared ones."""
    if hasattr(kind, "MOST_USED"):
        return list(kind.MOST_USED)
    own = [one.name for one in fields(kind) if _heading(kind, one.name) is None]
    return [*own, *(name for name in MOST_USED if name in {one.name for one in fields(kind)} - set(own))]


def _heading(kind: type, name: str) -> str | None:
    """Heading of a flag: that of the first class in the hierarchy which defines it; None for a verb's own."""
    definer = next(base for base in reversed(kind.__mro__) if name in vars(base).get("__annotations__", {}))
    return GROUPS.get(definer)


def _described(kind: type, one: Field[Any]) -> tuple[str, Any, Any]:
    """A field for `make_dataclass` with the type, help text and default of a field of the options."""
    definer = next(base for base in kind.__mro__ if one.name in vars(base).get("__annotations__", {}))
    text = _docstrings(definer)[one.name]
    hint = get_type_hints(kind, include_extras=True)[one.name]
    settings: dict[str, Any] = {"help": text}
    if type(None) in get_args(hint):
        (plain,) = (part for part in get_args(hint) if part is not type(None))
        choices = get_args(plain)
        settings["metavar"] = f"{{{','.join(choices)}}}" if choices else plain.__name__.upper()
    elif one.default is MISSING and get_args(hint):  # a positional argument
        settings["metavar"] = one.name.upper()
    if one.default is None:
        settings["help_behavior_hint"] = ""  # the text says what is done without the flag
    default = field() if one.default is MISSING else field(default=one.default)
    return one.name, Annotated[hint, tyro.conf.arg(**settings)], default


def _docstrings(kind: type) -> dict[str, str]:
    """Help texts of the fields that a class defines: the string below each."""
    definition: Any = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    return {
        ast.unparse(one.target): " ".join(ast.literal_eval(below.value).split())
        for one, below in pairwise(definition.body)
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
