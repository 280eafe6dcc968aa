"""SNN: a self-normalising network on one flat vector of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.cohort.record import Patient
from pipeline.errors import choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.snn import ACTIVATIONS, init_self_normalising, snn_layers


@register(
    paper="Klambauer et al., NeurIPS 2017; as in Chen et al. (MCAT), ICCV 2021",
    modalities=("omics",),
    reference=Inputs(vectors={"omics": 3062}),
)
class SNN(SurvivalModel):
    """x [B, d] → K blocks (Linear, ELU, AlphaDropout) → Linear → logits [B, bins].

    The published survival baseline of MCAT, PORPOISE, MOTCat, CMTA and SurvPath: "SNN" by its initialisation N(0, 1/√fan_in) and
    AlphaDropout, with ELU where Klambauer et al. have SELU (the public codes rule: every published number used ELU; SELU is a
    variant). A patient without the vector cannot be predicted; nothing is imputed.

    modality: the vector that is read (`omics`, or any table of the cohort). hidden: width of each block.
    activation: elu, selu, silu or relu (relu takes ordinary dropout, our choice).
    """

    def __init__(self, inputs: Inputs, *, modality: str, hidden: Sequence[int], activation: str, dropout: float) -> None:
        super().__init__()
        choice("activation", activation, ACTIVATIONS)
        self.modality = modality
        self.modalities = self.requires = (modality,)
        self.layers = snn_layers(inputs.vector(modality, "SNN"), hidden, dropout, activation)
        self.head = nn.Linear(hidden[-1], inputs.bins)
        init_self_normalising(self)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; raises `InputError` for a patient without the vector."""
        self.check(patient)
        return Output(self.head(self.layers(patient.vectors[self.modality])))
