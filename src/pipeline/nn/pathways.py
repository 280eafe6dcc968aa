"""One small self-normalising network a gene group, all groups at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.errors import choice
from pipeline.nn.dropout import alpha_dropout
from pipeline.nn.snn import snn_block


class GroupedEncoder(nn.Module):
    """G networks Linear(n_g, width)–ELU–AlphaDropout–Linear(width, width)–ELU–AlphaDropout as a handful of batched products.

    Used by SurvPath and its family (331 pathways) and by MCAT and its family (6 families). Takes [B, Σ n_g] (features of group
    0, then of group 1, …), gives tokens [B, G, width].

    Groups of equal size share one product in the first layer, all groups share one in the second: nothing is padded, so counts,
    operations and function are those of G separate networks, each initialised by its own fan-in. The rows of `weight_in` lie in
    the order of the groups' sizes (so that a class of equal sizes is a view of them); everything else lies in the order of the
    groups. `network` gives any group as ordinary layers.
    What this saves is the cost of 2·G small layers (launches, graph nodes). What is left is reading the weights, once forward and
    once backward, and writing their gradients: one CPU core does it at the speed of its memory (benchmarks/pathway_encoders.py).
    hidden: width between the layers (default: width). dropout_out: dropout after the second one (default: `dropout`).
    activation: elu, or selu.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        width: int,
        dropout: float,
        *,
        hidden: int | None = None,
        dropout_out: float | None = None,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self.sizes, self.width, self.hidden, self.dropout = tuple(sizes), width, hidden or width, dropout
        self.dropout_out = dropout if dropout_out is None else dropout_out
        self.activation, self.nonlinearity = activation, choice("activation", activation, {"elu": F.elu, "selu": F.selu})
        groups = len(self.sizes)
        order = sorted(range(groups), key=self.sizes.__getitem__)
        self.classes = [(len(list(same)), size) for size, same in groupby(order, key=self.sizes.__getitem__)]  # (groups, size)
        columns = torch.arange(sum(self.sizes)).split(self.sizes)
        self.weight_in = nn.Parameter(torch.empty(sum(self.sizes), self.hidden))
        self.bias_in = nn.Parameter(torch.empty(groups, self.hidden))
        self.weight_out = nn.Parameter(torch.empty(groups, self.hidden, width))
        self.bias_out = nn.Parameter(torch.empty(groups, width))
        self.register_buffer("columns", torch.cat([columns[g] for g in order]), persistent=False)  # the feature of each row of weight_in
        self.register_buffer("position", torch.tensor(order).argsort(), persistent=False)  # where each group stands among the sorted
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for linear layers: U(±1/√fan_in) for weights and biases, fan_in = n_g in the first layer."""
        with torch.no_grad():
            fan_in = torch.tensor(self.sizes, dtype=self.bias_in.dtype)
            bound = fan_in.rsqrt()[:, None]
            self.bias_in.uniform_(-1, 1).mul_(bound)
            self.weight_in.uniform_(-1, 1).mul_(bound.repeat_interleave(torch.tensor(self.sizes), dim=0)[self.columns])
            for parameter in (self.weight_out, self.bias_out):
                parameter.uniform_(-1, 1).mul_(self.hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """[B, Σ n_g] → [B, G, width]."""
        rows = [count * size for count, size in self.classes]
        values = features.index_select(1, self.columns).split(rows, dim=1)
        parts = [
            torch.bmm(x.unflatten(1, shape).transpose(0, 1), w.unflatten(0, shape))  # [groups, B, width]
            for shape, x, w in zip(self.classes, values, self.weight_in.split(rows), strict=True)
        ]
        hidden = torch.cat(parts).index_select(0, self.position).add_(self.bias_in[:, None])  # [G, B, width]
        hidden = torch.baddbmm(self.bias_out[:, None], self._activate(hidden, self.dropout), self.weight_out)
        return self._activate(hidden, self.dropout_out).transpose(0, 1)

    def _activate(self, hidden: Tensor, dropout: float) -> Tensor:
        hidden = self.nonlinearity(hidden, inplace=True)
        return alpha_dropout(hidden, dropout) if self.training and dropout else hidden

    def rows(self, group: int) -> slice:
        """The rows of `weight_in` that belong to a group."""
        before = [(self.sizes[g], g) for g in range(len(self.sizes)) if (self.sizes[g], g) < (self.sizes[group], group)]
        start = sum(size for size, _ in before)
        return slice(start, start + self.sizes[group])

    def network(self, group: int) -> nn.Sequential:
        """A copy of one group's network as ordinary layers, [B, n_g] → [B, width]: for attribution and for comparison."""
        first = snn_block(self.sizes[group], self.hidden, self.dropout, self.activation)
        second = snn_block(self.hidden, self.width, self.dropout_out, self.activation)
        copy = nn.Sequential(first, second)
        copy.to(self.weight_in.device, self.weight_in.dtype).train(self.training)
        first, second = copy[0][0], copy[1][0]
        with torch.no_grad():
            first.weight.copy_(self.weight_in[self.rows(group)].T)
            second.weight.copy_(self.weight_out[group].T)
            first.bias.copy_(self.bias_in[group])
            second.bias.copy_(self.bias_out[group])
        return copy
