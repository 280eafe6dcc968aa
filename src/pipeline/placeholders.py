"""Places in a user's text that a value fills: ``{fold}`` in a path, ``{project}`` in a name."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import InputError


def filled(text: str, name: str, value: object, file: str | Path | None = None) -> str:
    """`text` with `value` in place of ``{name}``; a number is padded with zeros by ``{name:02d}``, braces are written twice.

    Raises `InputError` for any other brace; `file` is named as the place of the text. `str.format` knows more, of which
    ``{name:>1000000000}`` takes a gigabyte.

    >>> filled("split_{fold:02d}/{{x}}.tsv", "fold", 3)
    'split_03/{x}.tsv'
    """

    def put(match: re.Match[str]) -> str:
        found = match[0]
        if found in ("{{", "}}"):
            return found[0]
        if found in "{}" or (match[1] and not isinstance(value, int)):
            numbers = f" or {{{name}:02d}}" if isinstance(value, int) else ""
            expected = f"{{{name}}}{numbers}, and no other braces"
            raise InputError(f"contains a placeholder other than {{{name}}}", file=file, found=text, expected=expected)
        return f"{value:0{match[1]}d}" if match[1] else str(value)

    return re.sub(rf"\{{\{{|\}}\}}|\{{{re.escape(name)}(?::0([1-9])d)?\}}|[{{}}]", put, text)


def without_braces(path: str, remedy: str, file: str | Path | None = None) -> str:
    """`path` itself; raises `InputError` where it has braces, in which Snakemake looks for wildcards. file: where it is written."""
    if "{" in path or "}" in path:
        raise InputError("path with braces, which Snakemake takes for wildcards", file=file, found=path, remedy=remedy)
    return path
