"""CoxNet: Cox regression with an elastic-net or ridge penalty, the reference every network has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.cox import fit_elastic_net, fit_ridge
from pipeline.nn.fitting import drawn_seed, gather, require_survival
from pipeline.nn.linear import FittedLinear


@register(
    paper="Cox 1972; elastic net of Simon et al., J. Stat. Softw. 2011, by scikit-survival (Pölsterl, JMLR 2020)",
    modalities=("omics",),
    reference=Inputs(vectors={"omics": 3062}, bins=1),
)
class CoxNet(SurvivalModel):
    """x [B, d] (tables side by side) → log-risk x·β [B, 1]; β is fitted by `prepare` and kept in buffers.

    modalities: tables to read, null = all the cohort offers; a table that a patient lacks becomes zeros, he needs at least one.
    penalty: `elastic_net` or `ridge`. l1_ratio: share of the absolute part (elastic net). alpha: its strength; null = chosen by
    cross-validated partial likelihood among `alphas` values down to `alpha_min_ratio` of the largest, in `inner_folds` parts of the
    training patients (elastic net; `ridge` needs a number).
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str] | None,
        penalty: str,
        alpha: float | None,
        l1_ratio: float,
        alphas: int,
        alpha_min_ratio: float,
        inner_folds: int,
    ) -> None:
        super().__init__()
        self.bins = inputs.bins
        self.fit = choice("penalty", penalty, {"elastic_net": self._elastic_net, "ridge": self._ridge})
        if penalty == "ridge" and alpha is None:
            raise InputError("penalty ridge has no strength", found="alpha: null", expected="a number above 0", remedy="State alpha.")
        self.alpha = alpha
        self.search = {"l1_ratio": l1_ratio, "alphas": alphas, "alpha_min_ratio": alpha_min_ratio, "folds": inner_folds}
        self.tables = Concatenation(inputs, modalities, "CoxNet")
        self.modalities = self.tables.modalities
        self.linear = FittedLinear(self.tables.width)

    def prepare(self, training: Iterable[tuple[Patient, Labels]]) -> None:
        """Fit β. Raises `InputError` for a binary endpoint, for a loss other than `cox`, and when the fit does not converge."""
        x, labels = gather(training, self.tables)
        require_survival(labels, "CoxNet")
        if self.bins != 1:
            raise InputError("CoxNet gives one log-risk", found=f"{self.bins} time bins", expected="training.loss: cox")
        self.linear.set(self.fit(x.astype(np.float64), labels.time, labels.event))

    def forward(self, patient: Patient) -> Output:
        """Log-risk [B, 1]; raises `InputError` for a patient with none of the tables."""
        self.check(patient)
        return Output(self.linear(self.tables(patient)))

    def _ridge(self, x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
        return fit_ridge(x, time, event, self.alpha)

    def _elastic_net(self, x: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
        return fit_elastic_net(x, time, event, alpha=self.alpha, seed=drawn_seed(), **self.search)
