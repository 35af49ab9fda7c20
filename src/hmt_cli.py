"""The `hmt` command.

It stands beside the package and not in it: importing the package registers the model with transformers, which takes
seconds, and `hmt --help` should not wait for that.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from hmt.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
