"""Blocks of the self-normalising network as survival models use it (Klambauer et al., NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pipeline.nn.dropout import Dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "selu": nn.SELU, "relu": nn.ReLU, "silu": nn.SiLU}


def snn_block(width_in: int, width_out: int, dropout: float, activation: str = "elu") -> nn.Sequential:
    """Linear → activation → dropout, [.., width_in] → [.., width_out].

    Dropout is AlphaDropout, which keeps mean and variance of ELU and SELU; after ReLU it is ordinary dropout (our choice).
    """
    drop = Dropout(dropout) if activation == "relu" else nn.AlphaDropout(dropout)
    return nn.Sequential(nn.Linear(width_in, width_out), ACTIVATIONS[activation](), drop)


def snn_layers(width_in: int, hidden: Sequence[int], dropout: float, activation: str = "elu") -> nn.Sequential:
    """A chain of SNN blocks of the widths `hidden`."""
    widths = [width_in, *hidden]
    return nn.Sequential(*(snn_block(a, b, dropout, activation) for a, b in pairwise(widths)))


def init_self_normalising(module: nn.Module) -> None:
    """Every linear layer of `module`: weights ~ N(0, 1/√fan_in) (standard deviation), bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
