"""How to install what is missing."""

from __future__ import annotations


def remedy(*extras: str) -> str:
    """What to do for one of these extras; not by name, since package indexes have something else of that name."""
    return "in a checkout of Successor, pip install " + " or ".join(f"'.[{extra}]'" for extra in extras)
