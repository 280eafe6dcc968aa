"""One small self-normalising network a gene group, all groups at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.snn import snn_block


class GroupedEncoder(nn.Module):
    """G networks Linear(n_g, width)–ELU–AlphaDropout–Linear(width, width)–ELU–AlphaDropout as a handful of batched matmuls.

    Used by SurvPath and its family (331 pathways) and by MCAT and its family (6 families). Takes [B, Σ n_g] (features of group
    0, then of group 1, …), gives tokens [B, G, width].

    Parameters are stored without padding and initialised by each group's own fan-in, so counts and function are those of G
    separate networks. For the first layer groups of similar size share one batched matmul on weights that are zero-padded to
    the largest of them (one padded block for all would make the 19 one-gene pathways as wide as the largest hallmark set).
    What this saves is the cost of 2·G small layers (kernel launches, graph nodes); reading the weights and writing their gradients,
    which is what is left on one CPU core, it cannot save.
    Dropout acts on the [B, G, width] activations, none of which is padding; it draws one mask for all groups where the loop
    draws one a group: the same distribution, another sequence of random numbers.
    """

    def __init__(self, sizes: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.sizes, self.width, self.dropout = tuple(sizes), width, dropout
        groups = len(self.sizes)
        self.weight_in = nn.Parameter(torch.empty(sum(self.sizes), width))
        self.bias_in = nn.Parameter(torch.empty(groups, width))
        self.weight_out = nn.Parameter(torch.empty(groups, width, width))
        self.bias_out = nn.Parameter(torch.empty(groups, width))
        self.blocks, slots, order = _layout(self.sizes)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("position", order.argsort(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for linear layers: U(±1/√fan_in) for weights and biases, fan_in = n_g in the first layer."""
        with torch.no_grad():
            fan_in = torch.tensor(self.sizes, dtype=self.bias_in.dtype)
            bound = fan_in.rsqrt()[:, None]
            self.bias_in.uniform_(-1, 1).mul_(bound)
            self.weight_in.uniform_(-1, 1).mul_(bound.repeat_interleave(torch.tensor(self.sizes), dim=0))
            for parameter in (self.weight_out, self.bias_out):
                parameter.uniform_(-1, 1).mul_(self.width**-0.5)

    @property
    def padded_rows(self) -> int:
        """Rows of the padded first-layer weights; Σ n_g of them are real."""
        return sum(count * size for count, size in self.blocks)

    def forward(self, features: Tensor) -> Tensor:
        """[B, Σ n_g] → [B, G, width]."""
        batch, rows = len(features), [count * size for count, size in self.blocks]
        weights = self.weight_in.new_zeros(self.padded_rows, self.width).index_copy(0, self.slots, self.weight_in)
        values = features.new_zeros(batch, self.padded_rows).index_copy(1, self.slots, features)
        parts = [
            torch.bmm(x.view(batch, *block).transpose(0, 1), w.view(*block, self.width))
            for block, x, w in zip(self.blocks, values.split(rows, dim=1), weights.split(rows), strict=True)
        ]
        hidden = torch.cat(parts).index_select(0, self.position) + self.bias_in[:, None]
        hidden = F.alpha_dropout(F.elu(hidden), self.dropout, self.training)
        hidden = torch.baddbmm(self.bias_out[:, None], hidden, self.weight_out)
        return F.alpha_dropout(F.elu(hidden), self.dropout, self.training).transpose(0, 1)

    def network(self, group: int) -> nn.Sequential:
        """A copy of one group's network as ordinary layers, [B, n_g] → [B, width]: for attribution and for comparison."""
        start, size = sum(self.sizes[:group]), self.sizes[group]
        copy = nn.Sequential(snn_block(size, self.width, self.dropout), snn_block(self.width, self.width, self.dropout))
        copy.to(self.weight_in.device, self.weight_in.dtype).train(self.training)
        first, second = copy[0][0], copy[1][0]
        with torch.no_grad():
            first.weight.copy_(self.weight_in[start : start + size].T)
            second.weight.copy_(self.weight_out[group].T)
            first.bias.copy_(self.bias_in[group])
            second.bias.copy_(self.bias_out[group])
        return copy


def _layout(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """Blocks (groups, padded size), the padded row of every real row, and the group that stands at each place of the blocks.

    Groups are taken by size; one block holds sizes of the same power of 4 (1, 2–4, 5–16, 17–64, …), padded to its largest.
    """
    order = sorted(range(len(sizes)), key=lambda g: sizes[g])
    classes: dict[int, list[int]] = {}
    for group in order:
        classes.setdefault(((sizes[group] - 1).bit_length() + 1) // 2, []).append(group)
    blocks, first_row, row = [], [0] * len(sizes), 0
    for members in classes.values():
        padded = sizes[members[-1]]
        blocks.append((len(members), padded))
        for group in members:
            first_row[group] = row
            row += padded
    slots = torch.cat([torch.arange(start, start + size) for start, size in zip(first_row, sizes, strict=True)])
    return blocks, slots, torch.tensor(order)
