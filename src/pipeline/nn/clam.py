"""The encoder of CLAM: gated attention over a bag, and instance heads that learn from the patches it looks at most and least."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import choice
from pipeline.nn.attention import GatedAttentionPool
from pipeline.nn.dropout import Dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU}


class Encoded(NamedTuple):
    """A bag after the encoder: instances [B, N, L], their weights [B, N] (0 on padding), their weighted sum `vector` [B, L]."""

    instances: Tensor
    weights: Tensor
    vector: Tensor


class ClamEncoder(nn.Module):
    """One attention branch of CLAM (Lu et al., Nat. Biomed. Eng. 2021; CLAM-SB): a bag [B, N, d] → one vector [B, L] and predictions.

    h_n = Drop(act(W x_n + b)); a = softmax_n(wᵀ[Drop(tanh(V h_n)) ⊙ Drop(σ(U h_n))] + c), V and U: L→D; vector = Σ_n a_n h_n.
    `head`: vector → `outputs` logits. `instance_heads`: h_n → two logits a class, in training only.

    width d, hidden L, gate D. activation: `relu` (CLAM) or `none` (HAF). dropout: after the first layer and in both gates (CLAM: 0.25).
    """

    def __init__(self, width: int, hidden: int, gate: int, outputs: int, classes: int, *, activation: str, dropout: float) -> None:
        super().__init__()
        activate = choice("activation", activation, ACTIVATIONS)()
        self.classes = classes
        self.project = nn.Sequential(nn.Linear(width, hidden), activate, Dropout(dropout))
        self.pool = GatedAttentionPool(hidden, gate, dropout)
        self.head = nn.Linear(hidden, outputs)
        self.instance_heads = nn.Linear(hidden, 2 * classes)

    def forward(self, features: Tensor, mask: Tensor) -> Encoded:
        """features [B, N, d], mask [B, N]; the vector of a patient without instances is zero."""
        instances = self.project(features)
        vector, weights = self.pool(instances, mask)
        return Encoded(instances, weights, vector)

    def extremes(self, encoded: Encoded, mask: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """What the instance heads say of the K highest- and the K lowest-weighted instances, K = min(samples, ⌊N/2⌋) a patient.

        Logits [B, 2, k, classes, 2] (highest, lowest) and which of the k columns count, [B, k]; no gradient through the choice.
        """
        k = max(1, min(samples, mask.shape[1] // 2))
        counted = torch.arange(k, device=mask.device) < (mask.sum(dim=1, keepdim=True) // 2)
        weights = encoded.weights.detach()
        highest = weights.masked_fill(~mask, -torch.inf).topk(k, dim=1).indices
        lowest = weights.masked_fill(~mask, torch.inf).topk(k, dim=1, largest=False).indices
        at = torch.cat([highest, lowest], dim=1)[..., None].expand(-1, -1, encoded.instances.shape[-1])
        logits = self.instance_heads(encoded.instances.gather(1, at))  # [B, 2k, 2·classes]
        return logits.unflatten(2, (self.classes, 2)).unflatten(1, (2, k)), counted


def clustering_loss(logits: Tensor, counted: Tensor, label: Tensor) -> Tensor:
    """CLAM's instance loss of the patient's own class, [B]: mean cross-entropy, highest = 1, lowest = 0 (`subtyping` off).

    logits and counted: see `ClamEncoder.extremes`; label [B] int64. A patient with fewer than two instances has 0.
    """
    own = logits[torch.arange(len(label), device=label.device), :, :, label].float().log_softmax(dim=-1)  # [B, 2, k, 2]
    surprise = -(own[:, 0, :, 1] + own[:, 1, :, 0])  # [B, k]
    return (surprise * counted).sum(dim=1) / (2 * counted.sum(dim=1)).clamp(min=1)
