"""Tables for the terminal, recalled text, and plots (extra `report`)."""

import importlib.util


def check_installed() -> None:
    """Check that the packages that draw are installed.

    Raises:
        ImportError: If one is missing; names the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert", "PIL")):
        raise ImportError("plots need the extra report: pip install altair vl-convert-python pillow")
