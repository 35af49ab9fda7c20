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
from types import FrameType

MISTAKE, INTERRUPTED = 2, 130

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Threads that wait leave their core to other programs, which spinning makes many times slower."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Arguments without the program's name; those of the process if None.
    """
    if not any(name in os.environ for name in (*PASSIVE_WAITING, "GOMP_SPINCOUNT")):
        os.environ.update(PASSIVE_WAITING)  # read when torch is imported
    signal.signal(signal.SIGINT, _leave)
    from hmt.cli.command import run

    status = run(
        sys.argv[1:] if arguments is None else arguments,
        on_start=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_flush(status))


def _leave(number: int, frame: FrameType | None) -> None:
    """End at an interrupt while libraries are imported: there is nothing to clean up, and no traceback is shown."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(sys.stderr.fileno(), b"hmt: interrupted\n")
    os._exit(INTERRUPTED)


def _flush(status: int) -> int:
    """Write out standard output's buffer; returns the status, or that of a mistake if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # or the interpreter would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if status == 0 and not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"hmt: standard output cannot be written: {error}\n")
            return MISTAKE
    return status


if __name__ == "__main__":
    main()
