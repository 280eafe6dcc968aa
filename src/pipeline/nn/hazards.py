"""Arithmetic of discrete-time survival, on logits and without a clamp.

A network gives one logit z_k a time bin. Hazard h_k = σ(z_k) is the probability of the event in bin k for whoever reached it,
survival S_k = Π_{j≤k} (1 − h_j) the probability of outliving bin k. In logarithms both are sums of softplus, which neither
overflow nor lose the tail: log h = −softplus(−z), log(1 − h) = −softplus(z).
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def log_hazards(logits: Tensor) -> Tensor:
    """log h_k, [B, bins]."""
    return -F.softplus(-logits)


def log_survival(logits: Tensor) -> Tensor:
    """log S_k = Σ_{j≤k} log(1 − h_j), [B, bins], non-increasing along the bins."""
    return -F.softplus(logits).cumsum(dim=1)


def hazards(logits: Tensor) -> Tensor:
    """h_k in (0, 1), [B, bins]."""
    return logits.sigmoid()


def survival(logits: Tensor) -> Tensor:
    """S_k, the probability of outliving bin k, [B, bins]."""
    return log_survival(logits).exp()


def risk_score(logits: Tensor) -> Tensor:
    """One number a patient, larger = worse, [B]: −Σ_k S_k, or the logit itself when there is one bin (Cox log-risk)."""
    return logits[:, 0] if logits.shape[1] == 1 else -survival(logits).sum(dim=1)
