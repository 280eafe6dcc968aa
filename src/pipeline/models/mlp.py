"""MLP: a plain ReLU perceptron on one flat vector of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.cohort.record import Patient
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.snn import snn_layers


@register(
    paper="Haykin 1998; as in Jaume et al. (SurvPath), CVPR 2024",
    modalities=("omics",),
    reference=Inputs(vectors={"omics": 4999}),
)
class MLP(SurvivalModel):
    """x [B, d] → blocks (Linear, ReLU, Dropout) → Linear → logits [B, bins]: the omics baseline "MLP" of SurvPath and SurvQ.

    Two blocks of 32 are what SurvPath's runs used; its class by itself has 256 (variant `wide`). Initialised as PyTorch does. A
    patient without the vector cannot be predicted; nothing is imputed. The published runs scaled all genes by one range to [−1, 1]:
    set the cohort's omics scaling to `minmax_global` for that.

    modality: the vector that is read (`omics`, or any table of the cohort). hidden: width of each block.
    """

    def __init__(self, inputs: Inputs, *, modality: str, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.modality = modality
        self.modalities = self.requires = (modality,)
        self.layers = snn_layers(inputs.vector(modality, "MLP"), hidden, dropout, "relu")
        self.head = nn.Linear(hidden[-1], inputs.bins)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; raises `InputError` for a patient without the vector."""
        self.check(patient)
        return Output(self.head(self.layers(patient.vectors[self.modality])))
