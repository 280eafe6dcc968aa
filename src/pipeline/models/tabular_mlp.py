"""TabularMLP: a small perceptron on any number of tables side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.cohort.record import Patient
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.concatenation import Concatenation
from pipeline.nn.snn import snn_layers


@register(
    paper="our choice, after the all-modality MLP of Zheng et al. (HAF), under review at MIDL 2026",
    modalities=("tables",),
    reference=Inputs(vectors={"clinical": 104}, bins=1),
)
class TabularMLP(SurvivalModel):
    """x [B, d] (tables side by side) → blocks (Linear, ReLU, Dropout) → Linear → logits [B, bins]; survival and binary endpoints.

    modalities: tables to read, null = all the cohort offers; a table that a patient lacks becomes zeros, he needs at least one.
    missing_flag: one more input a table, 1 where the patient lacks it. hidden: width of each block.
    """

    def __init__(
        self, inputs: Inputs, *, modalities: Sequence[str] | None, missing_flag: bool, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.tables = Concatenation(inputs, modalities, "TabularMLP", flags=missing_flag)
        self.modalities = self.tables.modalities
        self.layers = snn_layers(self.tables.width, hidden, dropout, "relu")
        self.head = nn.Linear(hidden[-1], inputs.bins)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; raises `InputError` for a patient with none of the tables."""
        self.check(patient)
        return Output(self.head(self.layers(self.tables(patient))))
