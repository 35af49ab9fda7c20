"""The command as a process: how its threads wait, how it is interrupted, what a terminal is shown."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hmt.terminal import CONTROL, EscapingFormatter, escaped

SHOWN = """
import os, sys, hmt_cli, hmt.cli.command
hmt.cli.command.run = lambda _: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
hmt_cli.main()
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    run = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == [expected, "False"], run.stderr


def test_python_m_hmt_does_not_import_torch_first() -> None:
    run = subprocess.run([sys.executable, "-X", "importtime", "-m", "hmt", "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "usage: hmt" in run.stdout
    assert not any(line.rpartition("|")[2].strip() == "torch" for line in run.stderr.splitlines())


@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_interrupts_at_the_start_are_one_line(delay: float, tmp_path: Path, backbone_dir: Path) -> None:
    command = [sys.executable, "-m", "hmt", "generate", "--prompt", "x" * 2000, "--model_name", str(backbone_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(delay)
        for _ in range(3):
            run.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, complaint = run.communicate()
    assert (run.returncode, complaint.count("\n")) == (130, 1), complaint


def test_a_terminal_is_shown_control_characters_escaped(run_cli: Any, tmp_path: Path) -> None:
    assert escaped("a\tb\n\x1b[31mc\u202e\x9b") == "a\tb\n\\x1b[31mc\\u202e\\x9b"
    for name in ("\x1b]0;title\x07", "\x1b[2J", "\r"):
        status, said, complaint = run_cli("generate", "--prompt", "x", "--model_name", tmp_path / name)
        assert status == 2
        assert not CONTROL.search(said + complaint)
    record = logging.LogRecord("hmt", logging.INFO, "", 0, "read %s", ("\x1b[2J",), None)
    assert EscapingFormatter("%(message)s").format(record) == "read \\x1b[2J"


def test_a_log_on_a_full_disk_is_no_traceback(tmp_path: Path, run_cli: Any, capsys: Any) -> None:
    run_cli("tasks")  # sets the logging of the command up
    with open("/dev/full", "w") as full:
        handler = logging.StreamHandler(full)
        handler.emit(logging.LogRecord("hmt", logging.INFO, "", 0, "x" * 20_000, (), None))
    assert "Traceback" not in capsys.readouterr().err
