"""Attention over instances of which some are padding: softmax, gated pooling, cross-attention from few queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension in which masked positions weigh exactly 0.

    `mask` bool, True = real, broadcastable to `scores`; None = all real. A row without a real position becomes zeros, not NaN.
    """
    if mask is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights * mask.any(dim=-1, keepdim=True)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of tokens [B, N, d] over the positions where mask [B, N] is True, [B, d]; zeros for a row without any."""
    return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


class GatedAttentionPool(nn.Module):
    """Attention pooling of Ilse et al., ICML 2018 (eq. 8 plain, eq. 9 gated): [B, N, width] → [B, width].

    a_i = w·[Drop(tanh(V h_i)) ⊙ Drop(σ(U h_i))] + c, α = softmax(a), pooled = Σ α_i h_i. V and U are one fused projection; c
    cancels in the softmax and so never gets a gradient (it is kept: published parameter counts contain it).
    The dropouts inside the branch are in the public survival codes, not in the paper.
    """

    def __init__(self, width: int, hidden: int, dropout: float, *, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.project = nn.Linear(width, 2 * hidden if gated else hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden, 1)

    def forward(self, instances: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pooled [B, width] and the weights α [B, N] (0 where `mask` [B, N] is False)."""
        projected = self.project(instances)
        if self.gated:
            values, gates = projected.chunk(2, dim=-1)
            hidden = self.dropout(values.tanh()) * self.dropout(gates.sigmoid())
        else:
            hidden = self.dropout(projected.tanh())
        weights = masked_softmax(self.score(hidden).squeeze(-1), mask)
        return torch.bmm(weights[:, None], instances).squeeze(1), weights


class CrossAttention(nn.Module):
    """Few queries [B or 1, M, d] look at many instances [B, N, d]: softmax(Q Kᵀ/√d_h) V, [B, M, d]; no residual, no norm.

    `folded` computes the same function without keys and values: (Q W_q) W_kᵀ is applied to the raw instances and W_v after the
    weighted sum, which removes 2·N·d² multiplications (MCAT and SurvQ specifications, Cost). The key bias adds one constant a
    query, the value bias passes through because weights sum to 1. Where a row of `mask` is all False there is nothing to look
    at, and what comes out has no meaning: the caller must discard it.
    """

    def __init__(self, width: int, *, heads: int = 1, bias: bool, output: bool, folded: bool = True) -> None:
        super().__init__()
        self.heads, self.folded = heads, folded
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width) if output else None

    def forward(self, queries: Tensor, instances: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Result [B, M, d], weights [B, heads, M, N] and the scores before the softmax, same shape; mask [B, N]."""
        q = self._split(self.query(queries)) * (queries.shape[-1] // self.heads) ** -0.5
        attend = self._folded if self.folded else self._plain
        pooled, weights, scores = attend(q, instances, None if mask is None else mask[:, None, None])
        result = pooled.transpose(1, 2).flatten(2)
        return (result if self.output is None else self.output(result)), weights, scores

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, d] → [B, heads, N, d/heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _plain(self, q: Tensor, instances: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = q @ self._split(self.key(instances)).transpose(-1, -2)
        weights = masked_softmax(scores, mask)
        return weights @ self._split(self.value(instances)), weights, scores

    def _folded(self, q: Tensor, instances: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        w_key, w_value = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.key, self.value))
        shape = (self.heads, q.shape[2])
        scores = ((q @ w_key).flatten(1, 2) @ instances.transpose(1, 2)).unflatten(1, shape)
        if self.key.bias is not None:
            scores = scores + q @ self.key.bias.unflatten(0, (self.heads, -1))[..., None]
        weights = masked_softmax(scores, mask)
        pooled = (weights.flatten(1, 2) @ instances).unflatten(1, shape) @ w_value.transpose(-1, -2)
        if self.value.bias is not None:
            pooled = pooled + self.value.bias.unflatten(0, (self.heads, 1, -1))
        return pooled, weights, scores
