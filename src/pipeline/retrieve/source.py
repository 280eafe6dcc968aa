"""`<file>.source.yaml`: where a file is from and what it is, without a date, so that fetching again gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline import tables
from pipeline.config import read_yaml
from pipeline.errors import InputError
from pipeline.files import sha256, write_text

ENDING = ".source.yaml"


@dataclass(frozen=True)
class Source:
    """Address, bytes and digests of a fetched file; `md5` only where its publisher states one."""

    url: str
    size: int
    sha256: str
    md5: str | None = None


def source_path(path: str | Path) -> Path:
    return Path(f"{path}{ENDING}")


def read_source(path: str | Path) -> Source | None:
    """The source of a fetched file, or None where there is none that can be read."""
    try:
        return Source(**read_yaml(source_path(path)))
    except (OSError, InputError, TypeError):
        return None


def write_source(path: str | Path, source: Source) -> Source:
    """Write what is known of a fetched file beside it."""
    write_text(source_path(path), yaml.safe_dump({k: v for k, v in vars(source).items() if v is not None}, sort_keys=False))
    return source


def write_origin(path: str | Path, *, url: str | None = None, files: Iterable[str | Path] = (), **settings: Any) -> None:
    """Write beside a table that we made what it is made from: a service, fetched files (name and SHA-256), and how."""
    made_from = {Path(file).name: sha256(file) for file in files}
    facts = {"url": url, "size": Path(path).stat().st_size, "sha256": sha256(path), "made_from": made_from, **settings}
    write_text(source_path(path), yaml.safe_dump({k: v for k, v in facts.items() if v not in (None, {})}, sort_keys=False))


def list_sources(paths: Iterable[str | Path], table: str | Path) -> None:
    """Write file, bytes, sha256 and url (empty for a table that we made) of each path, from its source; sorted by file."""
    rows = []
    for path in sorted(map(Path, paths)):
        known = read_yaml(source_path(path))
        if not {"size", "sha256"} <= known.keys():
            expected, remedy = "the keys size and sha256", f"Delete it and {path.name}, so that they are fetched again."
            raise InputError("is no source of a file", file=source_path(path), found=", ".join(known), expected=expected, remedy=remedy)
        rows.append((path.name, known["size"], known["sha256"], known.get("url", "")))
    tables.write_table(pd.DataFrame(rows, columns=("file", "bytes", "sha256", "url")), table)
