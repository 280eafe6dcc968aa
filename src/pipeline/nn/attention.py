"""Attention over instances of which some are padding: softmax, gated pooling, cross-attention from few queries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.dropout import Dropout


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
        self.dropout = Dropout(dropout)
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
    query, the value bias passes through because weights sum to 1. As every head then looks at all d dimensions, the plain form is
    the cheaper one for many queries with several heads, and taken: M·2·d + 2·d² an instance against heads·M·2·d.
    Where a row of `mask` is all False there is nothing to look at, and what comes out has no meaning: the caller must discard it.
    bias: of the query, key and value layers. key_bias: of the key layer alone, default `bias` (the softmax cancels it).
    """

    def __init__(self, width: int, *, heads: int = 1, bias: bool, key_bias: bool | None = None, output: bool, folded: bool = True) -> None:
        super().__init__()
        self.heads, self.folded = heads, folded
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias if key_bias is None else key_bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width) if output else None

    def forward(self, queries: Tensor, instances: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Result [B, M, d], weights [B, heads, M, N] and the scores before the softmax, same shape; mask [B, N]."""
        q, k, v, finish = self._operands(queries, instances)
        shape = (self.heads, queries.shape[1])
        scores = (q @ k.transpose(-1, -2)).reshape(len(k), *shape, -1)
        if self.key.bias is not None and self._folds(queries.shape[1]):
            scores = scores + (self._split(self._scaled(queries)) @ self.key.bias.unflatten(0, (self.heads, -1))[..., None])
        weights = masked_softmax(scores, None if mask is None else mask[:, None, None])
        return finish(weights.reshape(len(k), *q.shape[1:3], -1) @ v), weights, scores

    def stream(self, queries: Tensor, instances: Tensor, mask: Tensor | None = None, *, last: nn.Linear | None = None) -> Tensor:
        """The result alone, [B, M, d]: no M × N matrix is ever kept, so memory grows with N·d.

        last: a linear layer that the instances still lack, [B, N, w] → [B, N, d]. It is folded too, and its result never formed, where
        that takes fewer operations: heads·M·2·w an instance against heads·M·2·d + w·d.
        """
        if last is not None and not self._folds(queries.shape[1], last):
            instances, last = last(instances), None
        q, k, v, finish = self._operands(queries, instances, last)
        if mask is not None:
            mask = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]  # a row without instances: any finite result will do
        return finish(F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=mask, scale=1.0))

    def _folds(self, queries: int, last: nn.Linear | None = None) -> bool:
        """Whether the folded form, of the attention or of it and `last`, takes fewer operations an instance."""
        fewer = self.folded and 2 * queries * self.heads < 2 * queries + 2 * self.key.in_features
        if last is None or not fewer:
            return fewer
        return 2 * queries * self.heads * (last.in_features - last.out_features) < last.in_features * last.out_features

    def _operands(
        self, queries: Tensor, instances: Tensor, last: nn.Linear | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Queries, keys and values of one softmax attention, and what turns its result into ours.

        Plain: [B, heads, M or N, d/heads]. Folded: [B, 1, heads·M, d or w] and the instances themselves, [B, 1, N, d or w].
        """
        q = self._split(self._scaled(queries))
        if not self._folds(queries.shape[1]):
            return q, self._split(self.key(instances)), self._split(self.value(instances)), self._joined
        w_key, w_value = (layer.weight.unflatten(0, (self.heads, -1)) for layer in (self.key, self.value))
        looking = (q @ w_key).flatten(1, 2)[:, None]
        raw = instances[:, None]

        def finish(pooled: Tensor) -> Tensor:
            pooled = (pooled if last is None else last(pooled)).reshape(len(raw), self.heads, -1, w_value.shape[-1])
            pooled = pooled @ w_value.transpose(-1, -2)
            return self._joined(pooled if self.value.bias is None else pooled + self.value.bias.unflatten(0, (self.heads, 1, -1)))

        return looking if last is None else looking @ last.weight, raw, raw, finish

    def _scaled(self, queries: Tensor) -> Tensor:
        """(Q W_q)/√d_h."""
        return self.query(queries) * (queries.shape[-1] // self.heads) ** -0.5

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, d] → [B, heads, N, d/heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _joined(self, pooled: Tensor) -> Tensor:
        """[B, heads, M, d/heads] → [B, M, d], through the output layer if there is one."""
        result = pooled.transpose(1, 2).flatten(2)
        return result if self.output is None else self.output(result)
