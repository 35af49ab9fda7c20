"""`python -m hmt.harness`: the command line of lm-evaluation-harness, which then knows the model `hmt`."""

from __future__ import annotations

import sys
from importlib import import_module

from hmt.harness import check_installed


def main() -> None:
    """Register the model and pass all flags on; a mistake is one line and exit status 2."""
    try:
        check_installed()
        import_module("hmt.harness.adapter")
        import_module("lm_eval.__main__").cli_evaluate()
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"hmt.harness: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
