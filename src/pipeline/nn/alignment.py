"""Losses that align the modalities of a patient in one space, without labels: by singular values, and by pairs (CLIP)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-10  # below it an eigenvalue is rounding; the root keeps a finite slope (PMRL's code)
SHORTEST = 1e-12  # below it a vector has no direction


class Spectrum(NamedTuple):
    """Of the matrix whose columns are a patient's vectors: singular values [B, M], descending, and the dominant direction [B, d]."""

    values: Tensor
    direction: Tensor


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., d] at length 1, in float32 or better; one without a length stays zero and has no gradient, for it has no direction."""
    precise = _precise(vectors)
    length = torch.linalg.vector_norm(precise, dim=-1, keepdim=True)
    return precise / length.masked_fill(length < SHORTEST, torch.inf)


def spectrum(vectors: Tensor) -> Spectrum:
    """σ₁ ≥ … ≥ σ_M and q₁, the left singular vector of σ₁, of V = [v₁ … v_M] given as its rows, [B, M, d].

    A vector of zeros (absent modality) only adds a singular value 0 at the end. The sign of q₁, which a decomposition leaves open, is
    the one with q₁ · Σ_m v_m > 0, and where that is 0 the one that makes the largest coordinate of q₁ positive (our choice; eq. 6 depends
    on it). Computed in float32 or better from the eigenvectors R of the Gram matrix VᵀV [B, M, M].

    The gradients are exact but do not pass through the decomposition, whose own are infinite where eigenvalues coincide (two absent
    or two equal modalities). With c_j = V r_j = σ_j q_j: dλ_j = d(c_j·c_j) at fixed R, and d(V r₁) = dc₁ + Σ_{j>1} c_j d(c_j·c₁)/(λ₁−λ_j),
    without a term whose λ_j equals λ₁. c_j·c₁ is 0, so that the sum has a gradient and no value.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        v = _precise(vectors)
        with torch.no_grad():
            gram = (v @ v.transpose(1, 2)).nan_to_num(0.0, 0.0, 0.0)  # else a diverging training would end in an error of eigh
            found, rotation = (x.flip(-1) for x in torch.linalg.eigh(gram))  # descending
            gap = found[:, :1] - found
            inverse = torch.where(gap > (1e-6 * found[:, :1]).clamp(min=SMALLEST), 1 / gap, 0.0)  # [B, M], 0 for the first
        components = rotation.transpose(1, 2) @ v  # c_j in row j
        first = components[:, :1]
        values = components.square().sum(dim=-1).clamp(min=SMALLEST).sqrt()
        turned = inverse * (components * first).sum(dim=-1)
        direction = unit((first + turned[:, None] @ components).squeeze(1))
        return Spectrum(values, direction * _turn(direction.detach(), v.detach().sum(dim=1), values[:, :1].detach()))


def _turn(direction: Tensor, total: Tensor, largest: Tensor) -> Tensor:
    """1 or −1 [B, 1]: towards `total` [B, d], or where q₁ is orthogonal to it up to rounding, towards its own largest coordinate.

    That is no rare case: of two unit vectors at an obtuse angle q₁ is the difference, which is always orthogonal to the sum.
    """
    towards = (direction * total).sum(dim=1, keepdim=True)
    coordinate = direction.gather(1, direction.abs().argmax(dim=1, keepdim=True))
    return torch.where(torch.where(towards.abs() > 1e-5 * largest, towards, coordinate) < 0, -1.0, 1.0)


def singular_emphasis(values: Tensor, observed: Tensor, tau: float) -> Tensor:
    """L_SV (HAF eq. 5), the mean over patients: −log of the share of σ₁ in a softmax of σ/τ over the patient's modalities.

    values [B, M] descending, observed [B]: how many modalities the patient has; with one it is 0.
    """
    others = torch.arange(1, values.shape[1], device=values.device) < observed[:, None]
    ratio = ((values[:, 1:] - values[:, :1]) / tau).exp() * others
    return ratio.sum(dim=1).log1p().mean()


def discriminability(directions: Tensor, tau: float) -> Tensor:
    """L_PD (HAF eq. 6): cross-entropy that tells each patient's direction [B, d] from those of the others of the batch."""
    return _diagonal(_similarity(directions, directions) / tau)


def contrast(first: Tensor, second: Tensor, tau: float) -> Tensor:
    """The loss of CLIP (Radford et al., ICML 2021) of two modalities of the same n patients, unit vectors [n, d]; symmetric."""
    similarity = _similarity(first, second) / tau
    return (_diagonal(similarity) + _diagonal(similarity.T)) / 2


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    """Scalar products [n, n] of the rows, never in half precision: its rounding is divided by τ."""
    with torch.autocast(first.device.type, enabled=False):
        return _precise(first) @ _precise(second).T


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _diagonal(similarity: Tensor) -> Tensor:
    """Cross-entropy of the rows [n, n] with the diagonal as target."""
    return functional.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))
