"""Mixture of experts: stacked two-layer networks, routed and shared, the choice among them, and the loss that spreads the work."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.dropout import Dropout


class Experts(nn.Module):
    """E networks Linear(width, hidden), [LayerNorm], ReLU, Dropout, Linear(hidden, width_out), [LayerNorm], [ReLU] at once.

    Weights are stacked, [E, hidden, width] and [E, width_out, hidden], and initialised as `nn.Linear` is, so that counts and function
    are those of E separate networks in two batched products. Every expert computes every token: with the few tokens of a patient this
    costs less than sorting them out. An expert whose output is multiplied by 0 gets a gradient of 0.
    norm: both LayerNorms, each expert with its own scale and shift. final_relu: the last ReLU, which makes outputs ≥ 0.
    """

    def __init__(
        self, count: int, width: int, hidden: int, width_out: int, *, dropout: float = 0.0, norm: bool = False, final_relu: bool = False
    ) -> None:
        super().__init__()
        self.weight_in, self.bias_in = _linear(count, width, hidden)
        self.weight_out, self.bias_out = _linear(count, hidden, width_out)
        self.norm_in = _Norm(count, hidden) if norm else nn.Identity()
        self.norm_out = _Norm(count, width_out) if norm else nn.Identity()
        self.dropout, self.final_relu = Dropout(dropout), final_relu

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., T, width] → [..., T, E, width_out]."""
        count, hidden, width = self.weight_in.shape
        rows = F.linear(tokens.reshape(-1, width), self.weight_in.flatten(0, 1), self.bias_in.flatten())
        inner = self.dropout(self.norm_in(rows.unflatten(1, (count, hidden))).relu())  # [rows, E, hidden]
        out = torch.baddbmm(self.bias_out[:, None], inner.transpose(0, 1), self.weight_out.transpose(1, 2)).transpose(0, 1)
        out = self.norm_out(out)
        return (out.relu() if self.final_relu else out).unflatten(0, tokens.shape[:-1])


class _Norm(nn.Module):
    """LayerNorm over the last dimension of [rows, E, width] with a scale and a shift an expert."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(count, width)), nn.Parameter(torch.zeros(count, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class Mixed:
    """What a `Mixture` makes of vectors [S, L], and how: its `tokens` [S, T, t], `probabilities` and `gates` [S, T, E].

    routed and shared [S, T · t_out]: the outputs of the tokens in a row; of the routed experts weighed and added up, of the shared one.
    """

    def __init__(self, tokens: Tensor, probabilities: Tensor, gates: Tensor, outputs: Tensor) -> None:
        self.tokens, self.probabilities, self.gates = tokens, probabilities, gates
        self.routed = (gates[..., None] * outputs[:, :, :-1]).sum(dim=2).flatten(1)
        self.shared = outputs[:, :, -1].flatten(1)

    @property
    def balance(self) -> Tensor:
        """`balance_loss` [S]."""
        return balance_loss(self.probabilities, self.gates)


class Mixture(nn.Module):
    """Vectors [S, L] cut into tokens [S, L/t, t] → E routed experts and, last of the stack, the shared one, which has weight 1.

    DeepSeekMoE (Dai et al. 2024) without its residual connection; the gates are the k largest probabilities as they are.
    """

    def __init__(self, width: int, width_out: int, *, experts: int, k: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.width, self.k = width, k
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts + 1, width, hidden, width_out, dropout=dropout, final_relu=True)

    def forward(self, vectors: Tensor) -> Mixed:
        tokens = vectors.unflatten(1, (-1, self.width))
        probabilities = self.router(tokens).softmax(dim=-1)
        return Mixed(tokens, probabilities, top_k(probabilities, self.k), self.experts(tokens))


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """The k largest of the last dimension as they are, the others 0, [..., E]."""
    values, at = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, at, values)


def balance_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """E · Σ_e f_e P_e (GShard, Lepikhin et al. 2020; Switch, Fedus et al. 2022), [...]: 1 when experts share the tokens evenly.

    probabilities [..., T, E]: of the router. chosen [..., T, E]: not zero where an expert takes a token. f_e is the share of the
    (token, chosen expert) pairs that expert e has, which passes no gradient; P_e the mean probability of e over the tokens.
    """
    taken = (chosen.detach() != 0).to(probabilities.dtype).sum(dim=-2)
    share = taken / taken.sum(dim=-1, keepdim=True).clamp(min=1)
    return probabilities.shape[-1] * (share * probabilities.mean(dim=-2)).sum(dim=-1)


def _linear(count: int, width_in: int, width_out: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Stacked weights [E, width_out, width_in] and biases [E, width_out], U(±1/√width_in)."""
    bound = width_in**-0.5
    return (
        nn.Parameter(torch.empty(count, width_out, width_in).uniform_(-bound, bound)),
        nn.Parameter(torch.empty(count, width_out).uniform_(-bound, bound)),
    )
