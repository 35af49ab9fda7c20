"""The `hmt` command.

It stands beside the package and not in it: importing the package registers the model with transformers, which takes
seconds, and `hmt --help` should not wait for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

MISTAKE, INTERRUPTED = 2, 130

PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Threads that wait leave their core to others: beside other busy programs, spinning makes all of them many times
slower."""

WAITING = (*PATIENCE, "GOMP_SPINCOUNT")
"""Variables of the user that say how threads wait."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Without the program's name; those of the process where None.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ.update(PATIENCE)  # read when torch is imported
    status = None
    try:
        from hmt.cli.command import run

        status = run(sys.argv[1:] if arguments is None else arguments)
        status = _flush(status)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatient users press it several times
        if status != INTERRUPTED:  # else it was said
            sys.stderr.write("hmt: interrupted\n")
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _flush(status: int) -> int:
    """Write out what stands in standard output's buffer; the status, or that of a mistake where it cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
    except OSError as error:
        _close_output()
        if status == 0:
            sys.stderr.write(f"hmt: standard output cannot be written: {error}\n")
            return MISTAKE
    return status


def _close_output() -> None:
    """Keep the interpreter from trying once more at its end, where it would complain in its own words."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
