"""What the numbers of a molecular table are, from the numbers or as stated, and one scale for what differs by a fixed formula.

Networks are trained on expression in logarithms or z-scores; counts and TPM on their linear scale would be ruled by a few genes.
The bounds are our choice; they were set on the kinds of table that GDC, UCSC Xena and cBioPortal hand out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, nearest

log = logging.getLogger(__name__)

LOG_CEILING = 25.0  # log2 of 30 million: no logarithm of an expression is above it
LINEAR = 1000.0  # values from 0 to above it are no logarithms
LOG_BOTTOM = -15.0  # and none below it: log2 of 0.00003
XENA_FLOOR = np.log2(0.001)  # UCSC Xena writes log2(x + 0.001), so that an unexpressed gene is −9.9658


@dataclass(frozen=True)
class Numbers:
    """What decides the unit of values [P, F]: all whole? lowest and highest; patients' median sum; features' typical mean and sd.

    `centers` and `spreads` are quartiles over the features.
    """

    whole: bool
    low: float
    high: float
    total: float
    centers: tuple[float, float, float]
    spreads: tuple[float, float, float]

    @classmethod
    def of(cls, values: np.ndarray) -> Numbers:
        """NaN = missing, ignored; at least one value must be known."""
        values = np.asarray(values, dtype=np.float64)
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        count = known.sum(axis=0)
        mean = filled.sum(axis=0) / np.maximum(count, 1)
        spread = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / np.maximum(count, 1))
        some = values[known]
        return cls(
            bool((some == np.round(some)).all()),
            float(some.min()),
            float(some.max()),
            float(np.median(filled.sum(axis=1)[known.any(axis=1)])),
            *(tuple(np.quantile(x[count > 0], (0.25, 0.5, 0.75)).tolist()) for x in (mean, spread)),
        )

    def __str__(self) -> str:
        form = "whole numbers" if self.whole else "numbers"
        return (
            f"{form} from {self.low:.4g} to {self.high:.4g}, sum of a patient about {self.total:.3g}, "
            f"mean of a feature about {self.centers[1]:.2g} and sd about {self.spreads[1]:.2g}"
        )


@dataclass(frozen=True)
class Unit:
    """kind: of the features that may have it. possible: no contradiction with it; typical: nothing else looks so."""

    kind: str
    expected: str
    possible: Callable[[Numbers], bool]
    typical: Callable[[Numbers], bool]
    transform: str = "none"


def _counts(n: Numbers) -> bool:
    """RSEM's and Salmon's estimated counts are not whole, and far above any logarithm."""
    return n.low >= 0 and (n.whole or (n.high > 1000 and not _sums_to_a_million(n)))


def _sums_to_a_million(n: Numbers) -> bool:
    return 0.9e6 <= n.total <= 1.01e6  # less where genes were left out


def _logarithm(n: Numbers) -> bool:
    centred = XENA_FLOOR + 1 < n.low < 0 and abs(n.centers[1]) < 0.3  # z-scores, or ratios to a reference
    return n.low >= LOG_BOTTOM and n.high < LOG_CEILING and not centred


def _standardised(n: Numbers) -> bool:
    """Most features with mean 0 and sd 1; single values may be in the thousands (z-scores of linear RSEM, cBioPortal)."""
    return n.low < 0 and not n.whole and n.centers[0] > -0.75 and n.centers[2] < 0.75 and n.spreads[0] > 0.4 and n.spreads[2] < 2.5


def _calls(n: Numbers) -> bool:
    return n.whole and n.low >= -2 and n.high <= 2


def _ratios(n: Numbers) -> bool:
    return not n.whole and LOG_BOTTOM <= n.low < 0 and n.high < 10 and abs(n.centers[1]) < 1


def _binary(n: Numbers) -> bool:
    return n.whole and n.low >= 0 and n.high <= 1


UNITS = {
    "counts": Unit(
        "rnaseq", "whole numbers from 0, or large ones", _counts, lambda n: n.low >= 0 and n.whole and n.high > 1000, "log2(CPM + 1)"
    ),
    "tpm": Unit(
        "rnaseq",
        f"numbers from 0, some above {LOG_CEILING:g} and not all whole, sum of a patient at most a million",
        lambda n: n.low >= 0 and n.high > LOG_CEILING and not n.whole and n.total <= 1.01e6,
        lambda n: n.low >= 0 and not n.whole and _sums_to_a_million(n),
        "log2(x + 1)",
    ),
    "log2": Unit(
        "rnaseq",
        f"numbers from {LOG_BOTTOM:g} to {LOG_CEILING:g}, not centred on 0",
        _logarithm,
        lambda n: _logarithm(n) and not n.whole and n.high > 5 and (n.low >= 0 or abs(n.low - XENA_FLOOR) < 0.01),
    ),
    "zscore": Unit(
        "rnaseq",
        "numbers below and above 0, mean of a feature about 0 and sd about 1",
        lambda n: n.low < 0 < n.high and abs(n.centers[1]) < 1 and 0.2 < n.spreads[1] < 5,
        _standardised,
    ),
    "cnv_calls": Unit("cnv", "whole numbers from -2 to 2", _calls, _calls),
    "cnv_log2": Unit("cnv", f"numbers from {LOG_BOTTOM:g} to 10, centred on 0", _ratios, _ratios),
    "binary": Unit("mut", "0 or 1", _binary, _binary),
}


@dataclass(frozen=True)
class Settled:
    """The unit of a block: its name or `unknown`; source `stated`, `detected` or `unknown`; the formula applied, or `none`."""

    unit: str
    source: str
    transform: str


def check_unit(unit: str, kinds: Sequence[str], file: str | Path) -> None:
    """Raise `InputError` unless `unit` is `auto` or a unit of one of the `kinds` that the table holds."""
    if unit != "auto" and unit not in UNITS:
        known = ["auto", *UNITS]
        raise InputError("unknown unit", file=file, found=unit, expected=" or ".join(known), remedy=nearest(unit, known))
    if unit != "auto" and UNITS[unit].kind not in kinds:
        possible = ", ".join(name for name, u in UNITS.items() if u.kind in kinds)
        problem = f"`unit` is one of {UNITS[unit].kind} features, which the table does not hold"
        raise InputError(problem, file=file, found=unit, expected=f"auto, {possible}", remedy="Correct `unit` or `kind`.")


def settle(values: np.ndarray, kind: str, unit: str, file: str | Path) -> Settled:
    """The unit of values [P, F] of one kind (rnaseq, cnv, mut).

    `unit` is what was stated, and counts for its own kind only; `auto` and units of other kinds leave it to the numbers. What no
    rule recognises stays as it is, with a warning, unless it reaches from 0 to thousands, as no logarithm does.
    Detection looks at every patient, as a unit is a property of the table; whoever wants it independent of the tested ones states
    it. Raises `InputError` where the numbers contradict the stated unit, and for linear numbers of a unit that cannot be told.
    """
    if np.isnan(values).all():
        return Settled("unknown", "unknown", "none")
    numbers = Numbers.of(values)
    if unit in UNITS and UNITS[unit].kind == kind:
        if not UNITS[unit].possible(numbers):
            remedy = "Correct `unit`, or leave it out to have it detected."
            raise InputError(f"the {kind} values are not {unit}", file=file, found=numbers, expected=UNITS[unit].expected, remedy=remedy)
        return Settled(unit, "stated", UNITS[unit].transform)
    for name, known in UNITS.items():
        if known.kind == kind and known.typical(numbers):
            log.info("%s: %s values are taken for %s (%s)", Path(file).name, kind, name, numbers)
            return Settled(name, "detected", known.transform)
    if numbers.low >= 0 and numbers.high > LINEAR:
        remedy = "State `unit: tpm` or `unit: counts` (both are made logarithms), or take the logarithm yourself."
        raise InputError(f"the unit of the {kind} values cannot be told, and they are linear", file=file, found=numbers, remedy=remedy)
    log.warning("%s: the unit of the %s values is unknown and they are kept as they are (%s); state `unit`", Path(file).name, kind, numbers)
    return Settled("unknown", "unknown", "none")


def transformed(values: np.ndarray, transform: str, patients: Sequence[str], file: str | Path) -> np.ndarray:
    """Values [P, F] on the scale that models read, float32: by the patient's own numbers alone, so that nothing leaks.

    ``log2(CPM + 1)``: counts per million of the patient's counts in this table; ``log2(x + 1)``; ``none``.
    Raises `InputError` for a patient without a single count.
    """
    if transform == "none":
        return values
    linear = np.asarray(values, dtype=np.float64)
    if transform == "log2(CPM + 1)":
        totals = np.nansum(linear, axis=1)
        empty = (totals == 0) & ~np.isnan(linear).all(axis=1)
        if empty.any():
            patient = patients[int(empty.argmax())]
            problem, remedy = f"patient {patient} has no count above 0", "Remove the row: the measurement has failed."
            raise InputError(problem, file=file, expected="counts", remedy=remedy)
        linear = linear / np.where(totals > 0, totals, 1.0)[:, None] * 1e6
    return np.log2(linear + 1).astype(np.float32)
