"""Random forest: the non-linear reference of binary endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.cohort.record import Labels, Patient
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.fitting import drawn_seed, gather, require_binary
from pipeline.nn.trees import Forest

SMALLEST = 1e-6  # probabilities stay this far from 0 and 1, so that the log-odds stay finite


@register(
    paper="Breiman, Mach. Learn. 2001, by scikit-learn (Pedregosa et al., JMLR 2011)",
    modalities=("tables",),
    reference=Inputs(vectors={"clinical": 104}, bins=1),
)
class RandomForest(SurvivalModel):
    """x [B, d] (tables side by side) → log-odds of the mean probability of the trees [B, 1]; grown by `prepare`, kept as tensors.

    modalities: tables to read, null = all the cohort offers; a table that a patient lacks becomes zeros, he needs at least one.
    trees, min_samples_leaf, max_features: as scikit-learn has them.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str] | None,
        trees: int,
        min_samples_leaf: int,
        max_features: str | float | None,
    ) -> None:
        super().__init__()
        self.settings = {"n_estimators": trees, "min_samples_leaf": min_samples_leaf, "max_features": max_features}
        self.tables = Concatenation(inputs, modalities, "RandomForest")
        self.modalities = self.tables.modalities
        self.forest = Forest([0.5])

    def prepare(self, training: Iterable[tuple[Patient, Labels]]) -> None:
        """Grow the forest. Raises `InputError` for a survival endpoint and when all labels are the same."""
        from sklearn.ensemble import RandomForestClassifier

        x, labels = gather(training, self.tables)
        require_binary(labels, "RandomForest")
        grown = RandomForestClassifier(**self.settings, n_jobs=1, random_state=drawn_seed()).fit(x, labels.event.astype(int))
        trees = [tree.tree_ for tree in grown.estimators_]
        self.forest.set(trees, [tree.value[:, 0, 1:] for tree in trees])

    def forward(self, patient: Patient) -> Output:
        """Log-odds [B, 1]; raises `InputError` for a patient with none of the tables."""
        self.check(patient)
        return Output(self.forest(self.tables(patient)).clamp(SMALLEST, 1 - SMALLEST).logit().float())
