"""The command line of the published HMT program, run by this library: see docs/published.md."""

import sys

import hmt_cli  # noqa: F401  (before the package, so that it does not import torch for --help)
from hmt.cli import run

if __name__ == "__main__":
    sys.exit(run(["published", *sys.argv[1:]]))
