"""Fill the command-line reference with the help of every verb."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

VERBS = ("demo", "remember", "generate", "chat", "serve", "train", "evaluate", "profile", "report", "tasks", "harness",
         "convert")  # fmt: skip
MARK = "<!-- help of every verb -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by one section for each verb."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(f"## hmt {verb}\n\n```text\n{_help(verb)}```\n" for verb in VERBS))


def _help(verb: str) -> str:
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "74"}
    command = [sys.executable, "-m", "hmt", verb, "--help", "all"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
