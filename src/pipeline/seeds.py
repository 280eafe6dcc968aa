"""Seeds derived from names, so that a result does not depend on the order in which jobs run."""

from __future__ import annotations

import hashlib


def seed_from(*parts: object) -> int:
    """A 31-bit seed from (study, model, fold, …): the same parts give the same seed on every machine and Python version."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
