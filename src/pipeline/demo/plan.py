"""The plan of the synthetic cohort: who is in it, the hidden factors, the follow-up, and which files will exist.

Tables and slides are drawn from the same plan, so that they can be made by different jobs in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.errors import InputError
from pipeline.seeds import seed_from

MORPHOLOGY, EXPRESSION, INTERACTION, AGE = 1.2, 1.2, 1.1, 0.1
"""Weights of m, g, m·g and age (per standard deviation) in the log-hazard: alone, m and g reach a C-index of about 0.7; together 0.84."""
WEIBULL_SHAPE = 3.0  # the shape only stretches the time axis: order, and so the C-index, does not depend on it
EVENTS = 0.62
LONGEST_MONTHS = 120.0
LEAST_PATIENTS = 24

Defect = Literal["", "truncated", "no scale"]


@dataclass(frozen=True)
class PlannedSlide:
    """One slide file: `morphology` is m of its patient, `seed` fixes every pixel, `file` is relative to the cohort's folder."""

    slide_id: str
    patient_id: str
    morphology: float
    seed: int
    defect: Defect

    @property
    def file(self) -> str:
        return f"slides/{self.slide_id}.svs"


@dataclass(frozen=True)
class Plan:
    """Hidden factors and follow-up of P patients; every array is [P] and in the order of `patient_ids`.

    m, g: hidden factors, exactly mean 0, standard deviation 1 and uncorrelated. eta: log-hazard. time: months. event: 0/1.
    has_slides, has_omics: bool. slides: the slide files, sorted by id.
    """

    seed: int
    patient_ids: tuple[str, ...]
    m: np.ndarray
    g: np.ndarray
    age: np.ndarray
    eta: np.ndarray
    time: np.ndarray
    event: np.ndarray
    has_slides: np.ndarray
    has_omics: np.ndarray
    two_slides: np.ndarray

    @cached_property
    def slides(self) -> tuple[PlannedSlide, ...]:
        planned = []
        two, one = np.flatnonzero(self.two_slides), np.flatnonzero(self.has_slides & ~self.two_slides)
        # One patient goes on with his other slide, one with his omics alone: both ways out of a bad slide are exercised.
        defects: dict[str, Defect] = {f"{self.patient_ids[two[0]]}-B": "truncated", f"{self.patient_ids[one[0]]}-A": "no scale"}
        for row in np.flatnonzero(self.has_slides):
            for letter in "AB" if self.two_slides[row] else "A":
                slide_id = f"{self.patient_ids[row]}-{letter}"
                pixels = seed_from("demo slide", self.seed, len(self.patient_ids), slide_id)
                planned.append(PlannedSlide(slide_id, self.patient_ids[row], float(self.m[row]), pixels, defects.get(slide_id, "")))
        return tuple(planned)


def make_plan(patients: int = 80, seed: int = 1) -> Plan:
    """Draw the plan: ``eta = a m + b g + c m g + d age``, Weibull times with hazard ∝ exp(eta), independent censoring.

    Censoring times are uniform and independent of everything; their unit is set so that 62 % of the patients have an event, the
    unit of time so that the longest follow-up is 120 months. Raises `InputError` for fewer than 24 patients.
    """
    if patients < LEAST_PATIENTS:
        raise InputError("too few patients for a synthetic cohort", found=patients, expected=f"{LEAST_PATIENTS} or more")
    rng = np.random.default_rng(seed_from("demo truth", seed))
    m, g = _uncorrelated_normals(rng, patients)
    age = np.clip(np.rint(rng.normal(62, 10, patients)), 25, 90)
    eta = MORPHOLOGY * m + EXPRESSION * g + INTERACTION * m * g + AGE * (age - 62) / 10
    time, event = _follow_up(rng, eta)
    has_slides, has_omics, two_slides = _who_has_what(rng, patients)
    width = max(3, len(str(patients)))
    ids = tuple(f"DEMO-{i:0{width}d}" for i in range(1, patients + 1))
    return Plan(seed, ids, m, g, age, eta, time, event, has_slides, has_omics, two_slides)


def slide_ids(patients: int = 80, seed: int = 1) -> list[str]:
    """Ids of all slides of the synthetic cohort, sorted."""
    return [slide.slide_id for slide in make_plan(patients, seed).slides]


def permutation(patients: int, seed: int) -> np.ndarray:
    """[P] the fixed order in which the null cohort hands the (time, event) pairs to the patients."""
    return np.random.default_rng(seed_from("null", seed)).permutation(patients)


def _uncorrelated_normals(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two normal samples freed of chance: mean 0, standard deviation 1, correlation 0 in every cohort, however small."""
    first, second = rng.standard_normal((2, n))
    first = (first - first.mean()) / first.std()
    second -= second.mean()
    second -= first * (first @ second) / n
    return first, second / second.std()


def _follow_up(rng: np.random.Generator, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(time in months with two decimals, event 0/1)."""
    survival = (rng.exponential(size=len(eta)) * np.exp(-eta)) ** (1 / WEIBULL_SHAPE)
    censoring = rng.uniform(0.2, 1.0, len(eta))
    censoring *= np.quantile(survival / censoring, EVENTS)
    time = np.minimum(survival, censoring)
    months = np.round(time * LONGEST_MONTHS / time.max(), 2)
    return np.maximum(months, 1.0), (survival <= censoring).astype(int)


def _who_has_what(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three bool arrays [P]: has slides, has omics, has two slides. Nobody lacks both, and who has two slides has omics too."""
    lacking, doubled = max(2, round(patients * 0.075)), max(2, round(patients / 16))
    order = rng.permutation(patients)
    no_slides, no_omics, two_slides = np.split(order[: 2 * lacking + doubled], [lacking, 2 * lacking])

    def flags(rows: np.ndarray) -> np.ndarray:
        return np.isin(np.arange(patients), rows)

    return ~flags(no_slides), ~flags(no_omics), flags(two_slides)
