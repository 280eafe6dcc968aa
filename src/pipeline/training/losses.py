"""Survival losses. Labels: y [B] int64 time bin, event [B] bool, time [B] months."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.nn.hazards import log_hazards, log_survival


def discrete_nll(logits: Tensor, y: Tensor, event: Tensor, alpha: float = 0.0) -> Tensor:
    """Negative log-likelihood of discrete-time hazards, one value a patient [B].

    logits [B, K] are log-odds of the hazards h_k = σ(z_k); S_k = Π_{j≤k} (1−h_j), S_{−1} = 1.
    Event: −log S_{y−1} − log h_y; censored: −(1−α) log S_y (Zadeh & Schmid 2020, as used by MCAT; α = 0 is the plain likelihood).
    """
    after = log_survival(logits)  # log S_k
    before = functional.pad(after, (1, 0))  # log S_{k−1}
    at = y[:, None]
    happened = -before.gather(1, at) - log_hazards(logits).gather(1, at)
    censored = -(1.0 - alpha) * after.gather(1, at)
    return torch.where(event[:, None], happened, censored).squeeze(1)


def cox_partial(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative Cox partial log-likelihood per event (Breslow ties), a scalar.

    risk [B] is the log-risk; the risk set of an event at t is everyone of the batch with time ≥ t. Without an event: 0.
    """
    order = torch.argsort(time, descending=True, stable=True)
    risk, time, event = risk[order], time[order], event[order]
    cumulative = torch.logcumsumexp(risk, dim=0)
    last_of_tie = torch.searchsorted(-time, -time, right=True) - 1
    terms = (cumulative[last_of_tie] - risk)[event]
    return terms.sum() / event.sum().clamp(min=1)


def l1_penalty(model: torch.nn.Module, scope: str) -> Tensor:
    """Sum of |w| over all parameters (`all`) or only those with two or more dimensions (`weights`)."""
    return torch.stack([p.abs().sum() for p in model.parameters() if p.requires_grad and (scope == "all" or p.dim() > 1)]).sum()
