"""Which code made a file: a digest of the modules that a rule uses."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]


def code_version(*modules: str) -> str:
    """Twelve hex digits over the source of `modules`, packages with all their files and templates.

    >>> len(code_version("pipeline.errors"))
    12
    """
    digest = hashlib.sha256()
    for module in modules:
        path = SOURCE / module.replace(".", "/")
        files = sorted(f for f in path.rglob("*") if f.suffix in (".py", ".j2")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
