"""Logistic regression: the reference of binary endpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.fitting import drawn_seed, gather, require_binary
from pipeline.nn.linear import FittedLinear


@register(
    paper="L2 logistic regression, by scikit-learn (Pedregosa et al., JMLR 2011)",
    modalities=("tables",),
    reference=Inputs(vectors={"clinical": 104}, bins=1),
)
class Logistic(SurvivalModel):
    """x [B, d] (tables side by side) → log-odds of the event x·w + b [B, 1]; fitted by `prepare` and kept in buffers.

    modalities: tables to read, null = all the cohort offers; a table that a patient lacks becomes zeros, he needs at least one.
    strengths: how many values of C (1e-4 … 1e4, even in the logarithm) are tried; the one with the lowest log-loss over
    `inner_folds` stratified parts of the training patients is taken.
    """

    def __init__(self, inputs: Inputs, *, modalities: Sequence[str] | None, strengths: int, inner_folds: int) -> None:
        super().__init__()
        self.strengths, self.inner_folds = strengths, inner_folds
        self.tables = Concatenation(inputs, modalities, "Logistic")
        self.modalities = self.tables.modalities
        self.linear = FittedLinear(self.tables.width)

    def prepare(self, training: Iterable[tuple[Patient, Labels]]) -> None:
        """Fit w and b. Raises `InputError` for a survival endpoint, for too few patients of a label, and without convergence."""
        x, labels = gather(training, self.tables)
        require_binary(labels, "Logistic")
        fewest = int(np.bincount(labels.event.astype(int)).min())
        if fewest < self.inner_folds:
            found, expected = f"{fewest} patients of the rarer label", f"at least {self.inner_folds}"
            raise InputError("too few patients to choose the penalty of Logistic", found=found, expected=expected)
        self.linear.set(*_fit(x.astype(np.float64), labels.event.astype(int), self.strengths, self.inner_folds, drawn_seed()))

    def forward(self, patient: Patient) -> Output:
        """Log-odds [B, 1]; raises `InputError` for a patient with none of the tables."""
        self.check(patient)
        return Output(self.linear(self.tables(patient)))


def _fit(x: np.ndarray, label: np.ndarray, strengths: int, folds: int, seed: int) -> tuple[np.ndarray, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    search = LogisticRegressionCV(
        Cs=strengths, l1_ratios=(0.0,), cv=parts, scoring="neg_log_loss", max_iter=10_000, use_legacy_attributes=False
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            search.fit(x, label)
    except ConvergenceWarning as error:
        raise InputError(f"Logistic did not converge ({error})", remedy="Scale the tables.") from error
    return search.coef_[0], search.intercept_[0]
