"""What every unit test has."""

from pathlib import Path

import pytest

import pipeline


@pytest.fixture(autouse=True)
def package_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a test starts finds the package, as pytest does by its settings."""
    monkeypatch.setenv("PYTHONPATH", str(Path(pipeline.__file__).parents[1]))
