"""Fusion of two narrow vectors in the line of Pathomic Fusion, PG-MLIF and CA-MLIF: gates, low-rank interaction, weighing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.dropout import Dropout
from pipeline.nn.low_rank import LowRankFusion
from pipeline.nn.snn import init_self_normalising


class BilinearGate(nn.Module):
    """One modality's gated unit of Pathomic Fusion (IEEE TMI 2020), which PG-MLIF and CA-MLIF call MAM: [B, w], [B, v] → [B, w].

    h = ReLU(W_h x), z = Bilinear(x, y) ∈ R^w, o = Drop(ReLU(W_o (σ(z) ∘ h))), x the modality's own vector and y the other's.
    w·(w·v + 1) of its parameters are in the bilinear form, so it is meant for narrow vectors (the papers: 32).
    """

    def __init__(self, width: int, width_other: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.gate = nn.Bilinear(width, width_other, width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), Dropout(dropout))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """The gated vector [B, w]."""
        outer = (own[:, :, None] * other[:, None]).flatten(1)  # [B, w·v]: one product with all slices, a fifth of nn.Bilinear's time
        gate = F.linear(outer, self.gate.weight.flatten(1), self.gate.bias)
        return self.out(gate.sigmoid() * self.hidden(own).relu())


class LowRankInteraction(nn.Module):
    """F(a, b) = e₁(LMF(MAM(a, b))) of PG-MLIF (MICCAI 2024) and CA-MLIF (AAAI 2025): two vectors [B, w] → [B, width_out].

    Both are gated, fused at low rank to `lmf_width` without learned weights of the ranks, and encoded: Drop(ReLU(Linear(Drop(f)))).
    Linear layers start as N(0, 1/√fan_in) with bias 0 (the codes).
    """

    def __init__(self, width: int, lmf_width: int, rank: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.gates = nn.ModuleList(BilinearGate(width, width, dropout) for _ in range(2))
        self.lmf = LowRankFusion((width, width), lmf_width, rank, weighted=False, init="normal")
        self.encode = nn.Sequential(Dropout(dropout), nn.Linear(lmf_width, width_out), nn.ReLU(), Dropout(dropout))
        init_self_normalising(self)

    def forward(self, a: Tensor, b: Tensor, present: Sequence[Tensor] | None = None) -> Tensor:
        """[B, width_out]; present: one [B] bool a vector, where False it is [0; 1] in the low-rank fusion."""
        return self.encode(self.lmf([self.gates[0](a, b), self.gates[1](b, a)], present))


class WeighedConcatenation(nn.Module):
    """OWC of PG-MLIF: blocks [B, n_i] side by side, c [B, n], every entry weighed by what all say: c ∘ σ(W₂ ReLU(W₁ c)).

    The hidden width is ⌊75/130 · n⌋, the ratio of the code's literals.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width * 75 // 130
        self.weigh = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid())

    def forward(self, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The weighed entries and their weights, both [B, n]."""
        joined = torch.cat(list(blocks), dim=1)
        weights = self.weigh(joined)
        return weights * joined, weights
