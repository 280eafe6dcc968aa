"""What a file of the slide stage was made from: a fingerprint of the slide and a digest of the settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ENDS = 64 * 1024


def fingerprint(path: str | Path) -> str:
    """sha256 (16 hex digits) of a file's size and of its first and last 64 KiB: a slide of gigabytes is told apart in a millisecond."""
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        digest.update(handle.read(ENDS))
        handle.seek(max(size - ENDS, 0))
        digest.update(handle.read(ENDS))
    return digest.hexdigest()[:16]


def settings_digest(*parts: object) -> str:
    """16 hex digits that change with any of the JSON-able `parts` (dataclasses as dicts), whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
