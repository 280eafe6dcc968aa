"""What a check found, and running checks so that none can take down the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.machine import machine_fault

OK, WARN, FAIL = "OK", "WARN", "FAIL"
SHOWN = 3  # names of slides in a line; all are in the table


@dataclass(frozen=True)
class Finding:
    """`status` OK, WARN (the run goes on without something) or FAIL (it will not get through); what to do is the `remedy`."""

    status: str
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"  {self.status:<4}  {self.subject:<16} {self.text}"
        return f"{line}\n{'':<25}→ {self.remedy}" if self.remedy else line


Check = tuple[str, Callable[[], Iterable[Finding]]]


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of each check, as they come. Bad input is a FAIL, a check that breaks a WARN that says so."""
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:
            if told := machine_fault(error) or (error if isinstance(error, InputError) else None):
                yield Finding(FAIL, subject, told.reason, told.remedy)
                continue
            what = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(WARN, subject, f"could not be checked ({what})", "The run may meet the same error; please report it.")


def some(names: Iterable[str]) -> str:
    """The first few of `names` and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
