"""Experts of which a patient takes one a layer, beside an MLP that never learns (AdaMHF's PREE), and the token-wise mixture instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.errors import InputError, choice
from pipeline.nn.experts import Experts, top_k
from pipeline.nn.token_selection import through

FROZEN_SEED = 0


class FrozenMLP(nn.Module):
    """M(x) = W₂ ReLU(W₁ x + b₁) + b₂, [T, d] → [T, d]: the "fixed MLP" that keeps shallow features (AdaMHF, sec. II-C and appendix I).

    W₁ [hidden, d] and W₂ [d, hidden] are buffers: no optimiser and no initialisation of layers reaches them. One object serves all
    experts of both modalities ("identical parameter initialization").

    source: ``vit:<file>``, the MLP of the first encoder block of a ViT checkpoint (timm's or transformers' names; AdaMHF: ViT-L/16, whose
    MLP is 4096 × 1024). Where d or hidden is smaller, its first rows and columns times √(width/d) and √(mlp width/hidden), which keeps
    the variance of a sum (our choice; equal sizes give the original). ``xavier``: Xavier-normal of a fixed seed, biases 0 (our choice
    without a file). Raises `InputError` for another source, an unreadable file, or one without such an MLP or with a smaller one.
    """

    def __init__(self, width: int, hidden: int, source: str) -> None:
        super().__init__()
        kind, _, file = source.partition(":")
        read = choice("frozen_init", kind, {"xavier": _xavier, "vit": _vit})
        names = ("weight_in", "bias_in", "weight_out", "bias_out")
        for name, value in zip(names, read(width, hidden, file), strict=True):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight_in, self.bias_in).relu(), self.weight_out, self.bias_out)


class PatchExpert(nn.Module):
    """A convolutional expert (AdaMHF): Conv 3×3 d→hidden, norm, ReLU, Conv 3×3 hidden→d, norm on the s × s grid of patches.

    Tokens [1 + s², d] → [1 + s², d]. The class token, the first, goes through the same layers as a picture of one pixel: of the filters
    it meets the middle tap alone. norm: `layer`, over the channels of a token (our choice); `batch`, BatchNorm over the tokens of the
    patient, the class token among them (AdaMHF's code has BatchNorm on each of the two pictures, which fails for one pixel).
    """

    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        build = choice("expert_norm", norm, {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d})
        self.squeeze, self.norm_in = nn.Conv2d(width, hidden, 3, padding=1), build(hidden)
        self.expand, self.norm_out = nn.Conv2d(hidden, width, 3, padding=1), build(width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm_in(_convolved(self.squeeze, tokens)).relu()  # [1 + s², hidden]
        return self.norm_out(_convolved(self.expand, hidden))


class ProgressiveExperts(nn.Module):
    """PREE (AdaMHF, sec. II-C and Fig. 2a), tokens [T, d] → [T, d]: layers of n_ℓ experts, of which a patient takes one each.

    x ← ReLU(M(x) + w·E_e(x)), e = argmax p, p = softmax(gate(mean over the tokens)), gate = Linear d→d, ReLU, Linear d→n_ℓ; M is the
    `FrozenMLP`. Only E_e is evaluated. w = 1 + (p_e − sg(p_e)) is 1, but lets the gate learn (straight-through, our choice: in the
    public code the argmax gives it no gradient). A layer of one expert has no gate.

    counts: n_ℓ, 1, 2, 4 in the paper. expert: makes one. mlp_residual: false leaves M out (Table III). all_experts: Σ_e p_e E_e, nothing
    chosen (Table IV, "w/o PREE").
    """

    def __init__(
        self, width: int, counts: Sequence[int], expert: Callable[[], nn.Module], *, mlp_residual: bool, all_experts: bool
    ) -> None:
        super().__init__()
        self.mlp_residual, self.all_experts = mlp_residual, all_experts
        self.experts = nn.ModuleList(nn.ModuleList(expert() for _ in range(count)) for count in counts)
        self.gates = nn.ModuleList(_gate(width, count) if count > 1 else nn.Identity() for count in counts)

    def forward(self, x: Tensor, frozen: FrozenMLP) -> tuple[Tensor, list[int]]:
        """The tokens [T, d] and which expert each layer preferred."""
        chosen = []
        for experts, gate in zip(self.experts, self.gates, strict=True):
            expanded, best = self._expand(x, experts, gate)
            x = (frozen(x) + expanded if self.mlp_residual else expanded).relu()
            chosen.append(best)
        return x, chosen

    def _expand(self, x: Tensor, experts: nn.ModuleList, gate: nn.Module) -> tuple[Tensor, int]:
        if len(experts) == 1:
            return experts[0](x), 0
        p = gate(x.mean(dim=0)).softmax(dim=0)  # [n]
        best = int(p.argmax())
        if self.all_experts:
            return sum(share * expert(x) for share, expert in zip(p, experts, strict=True)), best
        return experts[best](x) * (1 + through(p[best])), best


class TokenMixture(nn.Module):
    """The standard mixture of experts (AdaMHF, Table III, as in its author's earlier code): x + Σ over a token's two best of p_e E_e(x).

    Tokens [T, d] → [T, d]; E experts Linear, LayerNorm, ReLU, Linear, LayerNorm of width d; p is the softmax of the two scores.
    """

    def __init__(self, width: int, *, count: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.chosen = chosen
        self.score = nn.Linear(width, count)
        self.experts = Experts(count, width, width, width, norm=True)

    def forward(self, x: Tensor, frozen: FrozenMLP) -> tuple[Tensor, list[int]]:
        """The tokens [T, d], and none that a patient as a whole preferred; `frozen` is not used."""
        shares = top_k(self.score(x).softmax(dim=-1), self.chosen)
        shares = shares / shares.sum(dim=-1, keepdim=True)  # as a softmax of the best scores alone
        return x + (shares[..., None] * self.experts(x)).sum(dim=-2), []


def _convolved(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """[1 + s², c] → [1 + s², c']: the first token as a picture of one pixel, the others as one of s × s."""
    side = math.isqrt(len(tokens) - 1)
    first, rest = tokens.split([1, side**2])  # split, not two slices: backward writes the gradient once
    picture = conv(rest.T.unflatten(1, (side, side))[None])[0]  # [c', s, s]
    return torch.cat([F.linear(first, conv.weight[:, :, 1, 1], conv.bias), picture.flatten(1).T])


def _gate(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, count))


def _xavier(width: int, hidden: int, _: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(FROZEN_SEED)
    std = math.sqrt(2 / (width + hidden))
    weight_in, weight_out = (torch.randn(*shape, generator=generator) * std for shape in ((hidden, width), (width, hidden)))
    return weight_in, torch.zeros(hidden), weight_out, torch.zeros(width)


def _vit(width: int, hidden: int, file: str) -> tuple[Tensor, ...]:
    from pipeline.slides.encoders.weights import read_weights, timm_names

    state = timm_names(read_weights(Path(file)))
    names = [f"blocks.0.mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    absent = [name for name in names if name not in state]
    if absent:
        raise InputError("not the checkpoint of a vision transformer", file=file, found=f"no {absent[0]}", expected=", ".join(names))
    fc1, bias_in, fc2, bias_out = (state[name].float() for name in names)
    full_hidden, full_width = fc1.shape
    if full_width < width or full_hidden < hidden:
        raise InputError(
            "the MLP of this vision transformer is smaller than the frozen MLP",
            file=file,
            found=f"{full_hidden} × {full_width}",
            expected=f"at least {hidden} × {width}",
            remedy="Lower the model options `frozen_hidden` and `width`, or give a larger network.",
        )
    weight_in = fc1[:hidden, :width] * math.sqrt(full_width / width)
    weight_out = fc2[:width, :hidden] * math.sqrt(full_hidden / hidden)
    return weight_in, bias_in[:hidden].clone(), weight_out, bias_out[:width].clone()
