"""The command line of the published HMT program, run by this library: see docs/published.md."""

import sys

from hmt_cli import main

if __name__ == "__main__":
    main(["published", *sys.argv[1:]])
