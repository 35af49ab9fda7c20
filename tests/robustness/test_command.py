"""The command as a process: how its threads wait, how it is interrupted, what a terminal is shown."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hmt.terminal import CONTROL, LOG_SECONDS, EscapingFormatter, ProgressBar, escaped, on_interrupt

SHOWN = """
import os, sys, hmt_cli, hmt.cli.command
hmt.cli.command.run = lambda *_, **__: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
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


def imports_torch(run: subprocess.Popen[str]) -> bool:
    """True once a process is importing torch."""
    return "libtorch" in Path(f"/proc/{run.pid}/maps").read_text()


def waits_for(pipe: Path, stack: ExitStack) -> bool:
    """True once a process reads a pipe, which then stays open and empty."""
    try:
        stack.callback(os.close, os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("moment", ["imports", "reading"])
def test_interrupts_at_the_start_are_one_line(moment: str, tmp_path: Path, backbone_dir: Path) -> None:
    prompt = tmp_path / "prompt"
    os.mkfifo(prompt)
    command = [sys.executable, "-m", "hmt", "generate", "--prompt_file", prompt, "--model_name", backbone_dir]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run,
        ExitStack() as stack,
    ):
        while run.poll() is None and not (imports_torch(run) if moment == "imports" else waits_for(prompt, stack)):
            time.sleep(0.01)
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


def test_long_work_without_a_terminal_logs_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with ProgressBar("tokens", total=1000, done=100) as bar:
        for _ in range(5):
            now[0] += LOG_SECONDS / 2
            bar.update(50, loss="3.2")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(part in lines[0] for part in ("200 tokens", "20%", "10.0/s", "01:20", "loss 3.2"))
    caplog.clear()
    with ProgressBar("tokens", hidden=True) as bar:
        now[0] += 2 * LOG_SECONDS
        bar.update(50)
    assert not caplog.records


def test_the_first_signal_is_a_request_and_the_second_an_interrupt() -> None:
    requests: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with on_interrupt(lambda: requests.append(1)):
        signal.raise_signal(signal.SIGTERM)
        assert requests == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert requests == [1]
    assert signal.getsignal(signal.SIGTERM) is before
