"""What all tests share, and how much processor time they took."""

import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: threads for matrices of a few numbers cost several times the work
REALDATA = os.environ.get("SLIDE2SURV_REALDATA")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real cohorts; tests that need it skip where it is absent."""
    if not REALDATA or not Path(REALDATA).is_dir():
        pytest.skip("no real data here: set SLIDE2SURV_REALDATA to the folder that holds tcga_mcat/ and slides/")
    return Path(REALDATA)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


_told = [0.0]  # CPU seconds of which a report has told


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Every report of a test says what was spent since the one before, what it had to set up included."""
    report = yield
    now = _cpu_seconds()
    report.user_properties = [*report.user_properties, ("cpu_seconds", now - _told[0])]
    _told[0] = now
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """CPU minutes by folder of tests, the start of the processes apart from their first test's."""
    spent: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds = dict(getattr(report, "user_properties", ())).get("cpu_seconds", 0.0)
            spent["/".join(report.nodeid.split("/")[:2]) if hasattr(report, "nodeid") else ""] += seconds
    spent += Counter()  # drops what is 0
    if spent:
        folders = ", ".join(f"{folder} {seconds / 60:.1f}" for folder, seconds in sorted(spent.items()))
        terminalreporter.write_line(f"CPU minutes: {sum(spent.values()) / 60:.1f} ({folders})")
