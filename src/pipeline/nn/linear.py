"""A linear predictor whose coefficients are found by other means than gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class FittedLinear(nn.Module):
    """x [B, d] → x·w + b [B, 1]; `weight` [d] and `bias` [] are buffers, zero until `set`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(()))

    def set(self, weight: np.ndarray, bias: float = 0.0) -> None:
        """Take fitted coefficients [d] and the intercept over."""
        self.weight.copy_(torch.from_numpy(np.asarray(weight, dtype=np.float32)))
        self.bias.fill_(float(bias))

    def forward(self, x: Tensor) -> Tensor:
        # A sum of products, not a matrix product: autocast leaves it in float32, where few risks tie.
        return (x * self.weight).sum(dim=1, keepdim=True) + self.bias
