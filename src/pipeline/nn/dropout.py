"""Dropout whose mask is cheap to draw: 16 random bits an element."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SATURATION = 1.7580993408473766  # −lim SELU(x) for x → −∞: what alpha dropout drops to (Klambauer et al. 2017)


def kept(x: Tensor, probability: float) -> Tensor:
    """Mask of x's shape, False with `probability`, rounded to 1/65536.

    Four elements share one 64-bit draw. On a CPU torch's Bernoulli draws twice for each element from a serial generator, ten times the
    work, which then costs more than the small layers it stands between.
    """
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return (draws.view(torch.int16)[: x.numel()] >= round(probability * 2**16) - 2**15).view(x.shape)


class Dropout(nn.Module):
    """``nn.Dropout`` in distribution: in training elements become 0 with `probability`, the others are scaled by 1/(1 − probability)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if not (self.training and self.probability):
            return x
        return x * kept(x, self.probability).to(x.dtype).div_(1 - self.probability)


def alpha_dropout(x: Tensor, probability: float) -> Tensor:
    """``nn.AlphaDropout`` in distribution: dropped to −1.758, then scaled and shifted so that N(0, 1) keeps mean and variance."""
    scale = ((1 - probability) * (1 + probability * SATURATION**2)) ** -0.5
    mask = kept(x, probability).to(x.dtype).mul_(scale)
    return x.add(SATURATION).mul_(mask).add_(SATURATION * scale * (probability - 1))
