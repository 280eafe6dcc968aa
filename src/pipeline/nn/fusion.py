"""Late fusion of two modality vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.nn.dropout import Dropout


class ConcatFusion(nn.Module):
    """[v1; v2] → Linear → ReLU → Linear → ReLU (MCAT, fusion `concat`): [B, width_1], [B, width_2] → [B, width]."""

    def __init__(self, width_1: int, width_2: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width_1 + width_2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The fused vector [B, width]."""
        return self.layers(torch.cat([first, second], dim=1))


class _Gate(nn.Module):
    """One side of the bilinear fusion: o = Drop(ReLU(O (σ(Z [v; other]) ⊙ ReLU(A v)))), [B, v] → [B, reduced]."""

    def __init__(self, width: int, joint: int, reduced: int, dropout: float) -> None:
        super().__init__()
        self.reduce, self.gate = nn.Linear(width, reduced), nn.Linear(joint, reduced)
        self.out = nn.Sequential(nn.Linear(reduced, reduced), nn.ReLU(), Dropout(dropout))

    def forward(self, vector: Tensor, joint: Tensor) -> Tensor:
        return self.out(self.gate(joint).sigmoid() * self.reduce(vector).relu())


class BilinearFusion(nn.Module):
    """Gated Kronecker fusion (Pathomic Fusion, IEEE TMI 2020, as MCAT uses it): [B, width_1], [B, width_2] → [B, width].

    Both sides are gated by the pair and reduced to width/scale, a 1 is appended to each (so that the linear terms survive),
    their outer product is encoded by two layers. No skip connection; dropout follows both layers (MCAT; PORPOISE has it not).
    """

    def __init__(self, width_1: int, width_2: int, width: int, dropout: float, *, scale: int = 8) -> None:
        super().__init__()
        reduced_1, reduced_2 = width_1 // scale, width_2 // scale
        self.first = _Gate(width_1, width_1 + width_2, reduced_1, dropout)
        self.second = _Gate(width_2, width_1 + width_2, reduced_2, dropout)
        self.encode = nn.Sequential(
            Dropout(dropout),
            nn.Linear((reduced_1 + 1) * (reduced_2 + 1), width),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            Dropout(dropout),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The fused vector [B, width]."""
        joint = torch.cat([first, second], dim=1)
        one = torch.ones_like(first[:, :1])
        left = torch.cat([self.first(first, joint), one], dim=1)
        right = torch.cat([self.second(second, joint), one], dim=1)
        return self.encode(torch.bmm(left[:, :, None], right[:, None]).flatten(1))
