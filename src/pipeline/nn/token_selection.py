"""Adaptive token selection and aggregation (AdaMHF's ATSA): how many tokens stay, which, and what becomes of the others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.dropout import Dropout

RHO_START = 0.05  # share of tokens that stays before anything is learned


class Selection(NamedTuple):
    """tokens [K, d], the kept ones first. scores [N] sum to 1. roles [N]: 2 kept as it is, 1 among the K best but pooled, 0 pooled (or
    dropped). rho, alpha: the ratios, scalars (alpha 1 where nothing is pooled)."""

    tokens: Tensor
    scores: Tensor
    roles: Tensor
    rho: Tensor
    alpha: Tensor


class TokenSelection(nn.Module):
    """ATSA (AdaMHF, sec. II-D, eqs 10–14): tokens x [N, d] and their class token c [d] → K tokens.

    z_i = [f(x_i); f(c)] (10), s = softmax_i(MLP z_i) (11), f = Drop ReLU(Linear d→d/2), MLP = Linear d→d/2, ReLU, Linear d/2→1.
    A router on c (Linear d→d, ReLU; two heads d→d/2→1, σ) gives the shares ρ ("Priority Allocator") and α ("Selective Refiner"):
    K = ⌈ρN⌉ (the share is the form of the author's earlier code) but at least 2, A = αK rounded but at least 1 and at most K−1. The A best
    tokens stay as they are; the other K−A best in the order of their scores and then all others in their own order are averaged to K−A
    tokens by adaptive pooling (13, 14).

    What follows from a count or from an order has no gradient. Straight-through factors, all exactly 1, pass one on (our choice):
    token i × (1 + N s_i − sg), kept × (1 + α − sg), pooled × (1 + (1−α) − sg), all × (1 + ρ − sg).
    preserve: false keeps the K best alone (Table III). rho, alpha: fixed shares (Fig. 4); a head that is not needed is not built.
    """

    def __init__(self, width: int, dropout: float, *, preserve: bool, rho: float | None, alpha: float | None) -> None:
        super().__init__()
        half = width // 2
        self.preserve, self.rho, self.alpha = preserve, rho, alpha if preserve else 1.0
        self.reduce = nn.Sequential(nn.Linear(width, half), nn.ReLU(), Dropout(dropout))
        self.compare = nn.Sequential(nn.Linear(2 * half, half), nn.ReLU())
        self.score = nn.Linear(half, 1)  # its bias cancels in the softmax
        self.allocate = _head(width) if self.rho is None else None
        self.refine = _head(width) if self.alpha is None else None
        self.router = nn.Sequential(nn.Linear(width, width), nn.ReLU()) if self.allocate or self.refine else nn.Identity()
        self.start()

    def start(self) -> None:
        """Set the bias of ρ so that few tokens stay at first (our choice); to be called again after the layers were initialised anew."""
        if self.allocate is not None:
            nn.init.constant_(self.allocate[-1].bias, math.log(RHO_START / (1 - RHO_START)))

    def forward(self, tokens: Tensor, cls: Tensor, count: int | None = None) -> Selection:
        """count: K given from outside; None lets the router decide."""
        n = len(tokens)
        compared = torch.cat([self.reduce(tokens), self.reduce(cls[None]).expand(n, -1)], dim=1)  # [N, 2·(d/2)]
        scores = self.score(self.compare(compared)).squeeze(1).softmax(dim=0)
        routed = self.router(cls)
        rho = scores.new_tensor(self.rho) if self.allocate is None else self.allocate(routed).sigmoid()[0]
        alpha = scores.new_tensor(self.alpha) if self.refine is None else self.refine(routed).sigmoid()[0]
        kept, size = self._counts(n, rho, alpha, count)
        tokens = tokens * (1 + n * through(scores))[:, None]
        order = scores.argsort(descending=True, stable=True)
        parts = [tokens[order[:kept]] * (1 + through(alpha))]
        if size > kept:
            rest = torch.cat([order[kept:size], order[size:].sort().values])
            parts.append(F.adaptive_avg_pool1d(tokens[rest].T, size - kept).T * (1 - through(alpha)))
        roles = torch.zeros_like(scores)
        roles[order[:size]] = 1.0
        roles[order[:kept]] = 2.0
        return Selection(torch.cat(parts) * (1 + through(rho)), scores, roles, rho.detach(), alpha.detach())

    def _counts(self, n: int, rho: Tensor, alpha: Tensor, count: int | None) -> tuple[int, int]:
        """A and K."""
        exact = self.rho if self.allocate is None else float(rho.detach())
        size = min(max(math.ceil(exact * n - 1e-9) if count is None else count, min(2, n)), n)
        if not self.preserve:
            return size, size
        exact = self.alpha if self.refine is None else float(alpha.detach())
        return min(max(round(exact * size), 1), max(1, size - 1)), size


def through(value: Tensor) -> Tensor:
    """0, exactly, with the gradient of `value`: what multiplies by 1 + through(value) stays as it is, bit by bit."""
    return value - value.detach()


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1))
