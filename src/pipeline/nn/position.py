"""Position of a token by convolution: tokens behind a class token, laid out row by row on a square grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class PPEG(nn.Module):
    """Pyramid position encoding of TransMIL (Shao et al., NeurIPS 2021): x + conv7(x) + conv5(x) + conv3(x), depth-wise, zeros outside.

    Tokens [B, 1 + s², d], the class token first and untouched. The three filters and the identity are added up to one filter of
    7 × 7 before they are applied: the same function in one convolution of 49 taps a token in place of 83.
    """

    SIZES = (7, 5, 3)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in self.SIZES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1 + s², d]."""
        whole = self.SIZES[0]
        kernel = sum(F.pad(f.weight, [(whole - size) // 2] * 4) for f, size in zip(self.filters, self.SIZES, strict=True))
        identity = F.pad(torch.ones_like(kernel[..., :1, :1]), [whole // 2] * 4)
        bias = sum(f.bias for f in self.filters)
        return _on_the_grid(tokens, lambda grid: F.conv2d(grid, kernel + identity, bias, padding=whole // 2, groups=len(bias)))


class EPEG(nn.Module):
    """Position encoding by one depth-wise convolution along the columns of the grid (RRT-MIL, Tang et al., CVPR 2024): x + conv(x).

    Tokens [B, 1 + s², d], the class token first and untouched. kernel: taps, odd; zeros outside. residual: False leaves out the
    identity, as AdaMHF's code does.
    """

    def __init__(self, width: int, kernel: int = 15, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.filter = nn.Conv2d(width, width, (kernel, 1), padding=(kernel // 2, 0), groups=width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1 + s², d]."""
        return _on_the_grid(tokens, lambda grid: self.filter(grid) + grid if self.residual else self.filter(grid))


def fill_square(tokens: Tensor) -> Tensor:
    """Tokens [B, N, …] with the first of them repeated up to the next square number ⌈√N⌉²."""
    count = tokens.shape[1]
    return torch.cat([tokens, tokens[:, : _side(count) ** 2 - count]], dim=1)


def _on_the_grid(tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` applied to the tokens [B, 1 + s², d] after the first as a picture [B, d, s, s]."""
    side = math.isqrt(tokens.shape[1] - 1)
    first, rest = tokens.split([1, side**2], dim=1)  # split, not two slices: backward writes the gradient once
    picture = change(rest.unflatten(1, (side, side)).permute(0, 3, 1, 2))  # a view, whose last dimension in memory is the channel
    return torch.cat([first, picture.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _side(count: int) -> int:
    """⌈√count⌉, in whole numbers."""
    return math.isqrt(count - 1) + 1
