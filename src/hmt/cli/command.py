"""The `hmt` command: finds the verb, runs it, and turns its outcome into output and an exit status."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file
from hmt.cli.verbs import PRESETS, PUBLISHED, VERBS
from hmt.terminal import EscapingFormatter, escaped, say

OK, MISTAKE, NOT_FINITE, INTERRUPTED = 0, 2, 3, 130
"""Exit statuses: success, a user's mistake, training or weights that are not finite, an interrupt."""


def run(arguments: Sequence[str], on_start: Callable[[], object] = lambda: None) -> int:
    """Run one command.

    Args:
        arguments: Arguments without the program's name.
        on_start: Called when the options are checked and the libraries are imported.

    Returns:
        The exit status: 0 on success, 2 on a user's mistake, 3 if numbers were not finite, 130 after an interrupt.
    """
    verb, *rest = arguments or ["--help"]
    try:
        if verb in ("-h", "--help"):
            sys.stdout.write(_overview())
            return OK
        if verb == COMPLETION_FLAG:
            _write_completion(arguments)
            return OK
        figures_file, figures, text = _run_verb(verb, rest, on_start)
        if os.environ.get("RANK", "0") != "0":
            return OK  # of several processes one reports
        if figures_file is not None:
            with atomic_file(figures_file) as file:
                file.write_text(json.dumps(figures, indent=1, default=str) + "\n")
        if text:
            say(text)
    except SystemExit as stop:  # tyro has shown help
        return OK if stop.code in (None, 0) else MISTAKE
    except BrokenPipeError:
        return OK  # whoever read the output has seen enough
    except (ValueError, OSError, ImportError) as error:
        return _fail(verb, error, MISTAKE)
    except FloatingPointError as error:
        return _fail(verb, error, NOT_FINITE)
    except KeyboardInterrupt:
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():  # impatient users press Ctrl-C several times
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN))
            return _fail(verb, "interrupted", INTERRUPTED)
    return OK


def _run_verb(
    verb: str, arguments: list[str], on_start: Callable[[], object]
) -> tuple[Path | None, dict[str, Any], str]:
    """Run a verb; returns the file for its figures, the figures, and its text."""
    from hmt.cli.parser import check_early, parse

    options = parse(verb, arguments)
    check_early(options)
    _configure_logging()
    if verb != "tasks":
        import_module("hmt.model.modeling_hmt")
    run_options = import_module((VERBS | PUBLISHED)[verb].module).run
    on_start()
    return getattr(options, "json", None), *run_options(options)


def _configure_logging() -> None:
    """Show this program's own log lines, and of other libraries only what matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(EscapingFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.raiseExceptions = False  # no traceback for a log line that a full disk does not take
    for noisy in ("httpx", "httpx2", "urllib3", "datasets", "PIL", "lm_eval", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # DeepSpeed, where it is installed, warns on standard output that there is no GPU, and sets its own level.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def _fail(verb: str, error: BaseException | str, status: int) -> int:
    line = " ".join(str(error).split()) or "no reason given"
    sys.stderr.write(f"hmt {verb}: {escaped(line)}\n")
    return status


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: hmt VERB [flags]\n\n"
        "A hierarchical memory for any HuggingFace causal language model.\n\n"
        f"verbs:\n{verbs}\n\n"
        "hmt VERB --help shows the most used flags of a verb, hmt VERB --help all every flag. Flags may also stand in\n"
        f"a YAML file given with --config FILE, or come from a preset: --config {', '.join(PRESETS)}.\n"
        f"Shell completion: hmt {COMPLETION_FLAG} bash|zsh|fish|tcsh FILE\n"
    )


COMPLETION_FLAG = "--tyro-write-completion"


def _write_completion(arguments: Sequence[str]) -> None:
    """Write a completion script for a shell, for all verbs."""
    import tyro

    if len(arguments) != 3:
        raise ValueError("needs a shell (bash, zsh, fish, tcsh) and a file")
    verbs: dict[str, Callable[..., Any]] = {name: verb.options_class for name, verb in VERBS.items()}
    tyro.extras.subcommand_cli_from_dict(verbs, prog="hmt", args=list(arguments), use_underscores=True)
