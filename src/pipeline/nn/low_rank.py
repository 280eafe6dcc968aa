"""Low-rank multimodal fusion: what a tensor product of modalities holds, without ever forming it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from pipeline.errors import choice


class LowRankFusion(nn.Module):
    """LMF (Liu et al., ACL 2018): vectors [B, w_m], any number of modalities → [B, width_out].

    f = Σ_i φ_i ∏_m [x_m; 1] W_m^(i) (+ b): the contraction of the outer product of all [x_m; 1] with a weight tensor of rank r, in
    O(r·width_out·Σ w_m) instead of O(width_out·∏ w_m). The appended 1 keeps the terms of fewer modalities.

    weighted: φ [r] and b [width_out] are learned, as in Liu et al. (AdaMHF); else φ = 1 and there is no b (PG-MLIF, CA-MLIF).
    init: `xavier`, each factor matrix Xavier-normal, φ too and b 0 (Liu et al.); or `normal`, N(0, 1/√(w_m + 1)), which keeps a
    factor's variance whatever its width (our choice; PG-MLIF's code draws N(0, 1)).
    """

    def __init__(self, widths: Sequence[int], width_out: int, rank: int, *, weighted: bool, init: str = "xavier") -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.factors = nn.ParameterList(torch.empty(rank, width + 1, width_out) for width in self.widths)
        self.weights = nn.Parameter(torch.empty(rank)) if weighted else None
        self.bias = nn.Parameter(torch.zeros(width_out)) if weighted else None
        fill = choice("init", init, {"xavier": nn.init.xavier_normal_, "normal": _fan_in_normal})
        for factor in self.factors:
            for matrix in factor.data:
                fill(matrix)
        if self.weights is not None:
            nn.init.xavier_normal_(self.weights.data[None])

    def forward(self, vectors: Sequence[Tensor], present: Sequence[Tensor] | None = None) -> Tensor:
        """[B, width_out]; present: one [B] bool a modality, where False the modality is [0; 1] (its constant term alone is left)."""
        has = [None] * len(self.widths) if present is None else present
        parts = [self._project(*one) for one in zip(vectors, self.factors, has, strict=True)]
        fused = reduce(torch.mul, parts)  # [r, B, width_out]
        if self.weights is None:
            return fused.sum(dim=0)
        return torch.tensordot(self.weights, fused, dims=1) + self.bias

    @staticmethod
    def _project(vector: Tensor, factor: Tensor, has: Tensor | None) -> Tensor:
        """[x; 1] W^(i) of one modality for every i, [r, B, width_out]."""
        if has is not None:
            vector = torch.where(has[:, None], vector, 0)
        return vector @ factor[:, :-1] + factor[:, -1:]


def _fan_in_normal(matrix: Tensor) -> Tensor:
    return nn.init.normal_(matrix, std=len(matrix) ** -0.5)
