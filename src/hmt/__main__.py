"""`python -m hmt`: the `hmt` command."""

from hmt_cli import main

main()
