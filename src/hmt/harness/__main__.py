"""`python -m hmt.harness`: the command line of lm-evaluation-harness, which then knows the model `hmt`."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Register the model and pass all flags on."""
    try:
        importlib.import_module("hmt.harness.adapter")
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"hmt.harness: {error}\n")
        sys.exit(2)


main()
