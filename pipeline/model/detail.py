"""Texts from outside, as they may be kept."""

from typing import Final

DETAIL_MAX: Final = 300


def storable(detail: str) -> str:
    """A venue's text as the database can keep it: without NUL and without halves of surrogate pairs."""
    return detail.replace("\x00", "?").encode("utf-8", "replace").decode()
