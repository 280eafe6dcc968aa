"""RSF: a random survival forest, the non-linear reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.cohort.record import Labels, Patient
from pipeline.errors import InputError
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.fitting import drawn_seed, gather, require_survival
from pipeline.nn.trees import Forest

SMALLEST = 1e-6  # hazards stay this far from 0 and 1, so that logits and likelihood stay finite


@register(
    paper="Ishwaran et al., Ann. Appl. Stat. 2008, by scikit-survival (Pölsterl, JMLR 2020)",
    modalities=("omics",),
    reference=Inputs(vectors={"omics": 3062}),
)
class RandomSurvivalForest(SurvivalModel):
    """x [B, d] (tables side by side) → mean survival of the trees at the ends of the time bins → logits of the hazards [B, bins].

    Fitted by `prepare` with scikit-survival and kept as tensors, so no pickle is needed. A hazard is 1 − S_k/S_{k−1}, kept within
    [1e-6, 1 − 1e-6].

    modalities: tables to read, null = all the cohort offers; a table that a patient lacks becomes zeros, he needs at least one.
    trees, min_samples_leaf, max_features (`sqrt`, `log2`, a share, or null = all): as scikit-survival has them; a node is split from
    2 × `min_samples_leaf` patients on.
    time_points: times are raised to at most this many distinct ones (quantiles, and the ends of the bins) before the fit, because
    its cost grows with them (so does randomForestSRC's `ntime`); null = as they are.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str] | None,
        trees: int,
        min_samples_leaf: int,
        max_features: str | float | None,
        time_points: int | None,
    ) -> None:
        super().__init__()
        self.settings = {"n_estimators": trees, "min_samples_leaf": min_samples_leaf, "max_features": max_features}
        self.time_points, self.bins = time_points, inputs.bins
        self.tables = Concatenation(inputs, modalities, "RandomSurvivalForest")
        self.modalities = self.tables.modalities
        self.forest = Forest([0.5**k for k in range(1, inputs.bins + 1)])

    def prepare(self, training: Iterable[tuple[Patient, Labels]]) -> None:
        """Grow the forest. Raises `InputError` for a binary endpoint and for a loss other than `nll`."""
        from sksurv.ensemble import RandomSurvivalForest as Trees
        from sksurv.util import Surv

        x, labels = gather(training, self.tables)
        require_survival(labels, "RandomSurvivalForest")
        ends = np.asarray(labels.edges[1:])
        if len(ends) != self.bins:
            found = f"{self.bins} outputs, {len(ends)} time bins"
            raise InputError("RandomSurvivalForest predicts survival at the ends of time bins", found=found, expected="training.loss: nll")
        time = labels.time if self.time_points is None else coarsened(labels.time, ends, self.time_points)
        forest = Trees(**self.settings, min_samples_split=2 * self.settings["min_samples_leaf"], n_jobs=1, random_state=drawn_seed())
        forest.fit(x, Surv.from_arrays(labels.event.astype(bool), time))
        last = np.searchsorted(forest.unique_times_, ends, side="right")  # steps up to the end of each bin
        trees = [tree.tree_ for tree in forest.estimators_]
        self.forest.set(trees, [np.pad(tree.value[:, :, 1], ((0, 0), (1, 0)), constant_values=1.0)[:, last] for tree in trees])

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; raises `InputError` for a patient with none of the tables."""
        self.check(patient)
        return Output(hazard_logits(self.forest(self.tables(patient))))


def hazard_logits(survival: Tensor) -> Tensor:
    """Log-odds [B, K] float32 of the hazards of survival [B, K] at the ends of the bins."""
    before = torch.nn.functional.pad(survival[:, :-1], (1, 0), value=1.0).clamp(min=SMALLEST)
    return (1 - survival / before).clamp(SMALLEST, 1 - SMALLEST).logit().float()


def coarsened(time: np.ndarray, ends: np.ndarray, count: int) -> np.ndarray:
    """Times [n] raised to the next of `count` quantiles or of `ends`, so that no time crosses the end of its bin."""
    quantiles = np.quantile(time, np.linspace(0, 1, count + 1)[1:], method="inverted_cdf")
    grid = np.unique([*quantiles, *ends[:-1]])
    return grid[np.searchsorted(grid, time)]
