"""The figures of ``config/rates.yaml``, with what each of them rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from pipeline import config as configuration
from pipeline.errors import InputError, nearest

FIGURES = ("predict", "step", "peak_gb", "parameters")


class Rates:
    """Figures by dotted name; `used` collects those that were asked for, with their sources, for the reader of the plan."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or configuration.ROOT / "rates.yaml"
        self.document = configuration.read_yaml(self.file)
        self.used: dict[str, str] = {}

    def of(self, name: str) -> float:
        """A figure; raises `InputError` when the file lacks it or it is no number."""
        entry = self._found(name)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), int | float) or not entry.get("source"):
            raise InputError(f"{name} is no figure", file=self.file, found=entry, expected="{value: a number, source: words}")
        self.used[name] = f"{entry['value']:,g} ({entry['source']})"
        return float(entry["value"])

    def gflop(self, encoder: str) -> float:
        """Billions of operations of an encoder a patch; of one that is not counted, the median of the others."""
        counted = self._found("encoders.gflop")
        if encoder not in counted:
            self.used[f"encoder {encoder}"] = f"not counted; the median of the others, {median(counted.values()):g} Gflop a patch"
        return float(counted.get(encoder, median(counted.values())))

    def model(self, name: str, fitted: bool = False) -> dict[str, Any]:
        """`FIGURES` of a model; `fitted`: of any that is fitted in one go. Of a network without figures, the medians of the others."""
        if fitted:
            return self._found("training.fitted")
        models, self.used["training"] = self._found("training.models"), self._found("training.source")
        if name in models:
            return models[name]
        self.used[f"model {name}"] = "not measured; the median of the others"
        return {figure: _middle([entry[figure] for entry in models.values()]) for figure in FIGURES}

    def _found(self, name: str) -> Any:
        block: Any = self.document
        for key in name.split("."):
            if not isinstance(block, Mapping) or key not in block:
                known = list(block) if isinstance(block, Mapping) else []
                raise InputError(f"the figure {name!r} is missing", file=self.file, expected=f"{key}: …", remedy=nearest(key, known))
            block = block[key]
        return block


def _middle(values: list[Any]) -> Any:
    """The median, of pairs one by one."""
    return [median(column) for column in zip(*values, strict=True)] if isinstance(values[0], list) else median(values)
