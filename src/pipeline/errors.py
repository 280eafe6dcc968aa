"""One family of errors for bad input: each says where, what was found, what was expected and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
COMPARED = 20_000  # words that are compared with a wrong one: more of them take seconds


class InputError(ValueError):
    """Something the user gave cannot be used.

    The parts are kept as attributes so that a caller can list `reason` and `remedy` in a table.

    >>> print(InputError("event flag is neither 0 nor 1", file="f.tsv", row=3, column="event", found="2", expected="0 or 1"))
    f.tsv, row 3, column 'event': event flag is neither 0 nor 1; found '2', expected 0 or 1.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        row: int | str | None = None,
        column: str | None = None,
        slide: str | None = None,
        found: object = None,
        expected: object = None,
        remedy: str = "",
    ) -> None:
        self.problem, self.file, self.row, self.column, self.slide = problem, file, row, column, slide
        self.found, self.expected, self.remedy = found, expected, remedy
        super().__init__(f"{self.reason} {remedy}".strip())

    @property
    def reason(self) -> str:
        """The message without the remedy, on one line."""
        where = [str(self.file)] if self.file is not None else []
        where += [f"slide {self.slide}"] if self.slide is not None else []
        where += [f"row {self.row}"] if self.row is not None else []
        where += [f"column {self.column!r}"] if self.column is not None else []
        facts = [f"found {str(self.found)!r}"] if self.found is not None else []
        facts += [f"expected {self.expected}"] if self.expected is not None else []
        text = ", ".join(where) + (": " if where else "") + self.problem
        text += ("; " + ", ".join(facts) if facts else "") + "."
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return _rebuild, (self.problem, {k: v for k, v in vars(self).items() if k != "problem" and not k.startswith("_")})


def _rebuild(problem: str, parts: dict[str, object]) -> InputError:
    return InputError(problem, **parts)  # type: ignore[arg-type]


def nearest(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known word, or an empty string."""
    match = get_close_matches(str(word), list(islice(known, COMPARED)), n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else ""


def choice(option: str, value: str, known: Mapping[str, T]) -> T:
    """``known[value]``; raises `InputError` naming the option, with the nearest known value, when there is none."""
    if value in known:
        return known[value]
    expected = "one of " + ", ".join(known)
    raise InputError(f"unknown value of the model option {option!r}", found=value, expected=expected, remedy=nearest(value, known))
