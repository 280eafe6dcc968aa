"""Two sets of tokens exchange what they hold through contexts whose size does not depend on the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.attention import masked_mean


@dataclass(frozen=True)
class Tokens:
    """Tokens of a modality [B, K, d]; mask [B, K], None = all are real; copies: how many equal ones each stands for (None: 1)."""

    values: Tensor
    mask: Tensor | None = None
    copies: int | None = None

    def key_bias(self) -> Tensor | None:
        """What is added to attention scores of a class token and the tokens, [B, 1, 1, 1 + K]: n equal keys are one with log n added."""
        if self.mask is None and self.copies is None:
            return None
        bias = self.values.new_full(self.values.shape[:2], math.log(self.copies or 1))
        return F.pad(bias if self.mask is None else bias.masked_fill(~self.mask, -torch.inf), (1, 0))[:, None, None]

    def mean(self, x: Tensor) -> Tensor:
        """Mean of x [B, K, d] over the real tokens, [B, 1, d]."""
        return x.mean(dim=1, keepdim=True) if self.mask is None else masked_mean(x, self.mask)[:, None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, d] → [B, heads, N, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class ContextAttention(nn.Module):
    """One layer of cross-attention both ways (eqs 3, 4; scale, softmax axis, projection and norm from CMX, which they follow).

    [R; I] = ReLU(W X), [K; V] = W' I in heads; context G = softmax(KᵀV/√d_h), columns sum to 1, [B, heads, d_h, d_h];
    U = I G of the partner; X̂ = LN(X + W″[R; U]). Linear in the number of tokens; padding is not in KᵀV.
    """

    def __init__(self, width: int, *, heads: int, mean: bool, other: bool) -> None:
        super().__init__()
        self.heads, self.mean, self.other = heads, mean, other
        self.split, self.join = _two(width, 2 * width), _two(2 * width, width)
        self.key_value = _two(width, 2 * width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, tokens: Sequence[Tokens], has: Sequence[Tensor]) -> list[Tokens]:
        there = [present[:, None, None] for present in has]
        halves = [split(x.values).relu().chunk(2, dim=-1) for split, x in zip(self.split, tokens, strict=True)]
        contexts = [self._context(layer(half[1]), x) for layer, half, x in zip(self.key_value, halves, tokens, strict=True)]
        changed = []
        for m, n in ((0, 1), (1, 0)):
            residual, inter = halves[m]
            u = (split_heads(inter, self.heads) @ contexts[n]).transpose(1, 2).flatten(2) * there[n]
            if self.other:
                residual = (tokens[n].mean(halves[n][0]) * there[n]).expand_as(residual)
            update = self.join[m](torch.cat([residual, u], dim=-1))
            changed.append(replace(tokens[m], values=self.norms[m](tokens[m].values + update)))
        return changed

    def _context(self, key_value: Tensor, tokens: Tokens) -> Tensor:
        """softmax(KᵀV/√d_h), [B, heads, d_h, d_h], from keys and values [B, N, 2d].

        In float32 or better: what thousands of tokens add up to overflows float16, and in bfloat16 the softmax would be off by 0.1.
        """
        with torch.autocast(key_value.device.type, enabled=False):
            exact = key_value.to(torch.promote_types(key_value.dtype, torch.float32))
            k, v = (split_heads(half, self.heads) for half in exact.chunk(2, dim=-1))
            if tokens.mask is not None:
                v = v.masked_fill(~tokens.mask[:, None, :, None], 0)
            weight: Tensor | float = tokens.copies or 1
            if self.mean:
                weight = 1 / v.shape[2] if tokens.mask is None else 1 / tokens.mask.sum(dim=1).view(-1, 1, 1, 1)
            context = (k.transpose(-1, -2) @ v * (k.shape[-1] ** -0.5 * weight)).softmax(dim=-2)
        return context.to(key_value.dtype)


def _two(width_in: int, width_out: int, *, bias: bool = True) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width_in, width_out, bias=bias) for _ in range(2))
