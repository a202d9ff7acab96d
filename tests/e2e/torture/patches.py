"""Replacing parts of the product from outside, so that it needs no hooks for this."""

from __future__ import annotations

__all__ = ["replace"]


def replace(owner: object, name: str, replacement: object) -> None:
    """Let `owner.name` be something else in this process, if there is such a thing."""
    assert hasattr(owner, name), f"{owner} has no {name} any more: nothing would be replaced"
    setattr(owner, name, replacement)
