"""`python -m hmt`: the `hmt` command."""

from hmt_cli import main

if __name__ == "__main__":  # processes of its own import this file again
    main()
