"""Self-attention of a set of tokens: exact, and the Nyström approximation with TransMIL's position encoding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.nn.attention import masked_softmax


class SelfAttention(nn.Module):
    """Multi-head softmax attention [B, N, width] → [B, N, width]: projection to queries, keys and values without bias, output with.

    mask [B, N] bool, True = a real token: others are not looked at. head_width: default width / heads.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, head_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (head_width or width // heads)
        self.project = nn.Linear(width, 3 * inner, bias=False)
        self.output = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.project(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.dropout(self.output(self.mix(q, k, v, mask).transpose(1, 2).flatten(2)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q kᵀ/√d_h) v, all [B, heads, N, d_h]."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])


class NystromAttention(SelfAttention):
    """Attention through m landmarks, linear in N (Xiong et al., AAAI 2021; sizes as in TransMIL, NeurIPS 2021).

    out = softmax(q k̃ᵀ)·pinv(softmax(q̃ k̃ᵀ))·(softmax(q̃ kᵀ) v): q̃, k̃ are means of l = ⌈N/m⌉ consecutive tokens after zero-padding at the
    front to a multiple of m. To it a depth-wise convolution of v over the sequence (kernel `convolution`, one filter a head) is added;
    None leaves it out. Not an exact reformulation of `SelfAttention`, and not invariant to the order of tokens.

    mask None: the padding takes part in the softmax and in the landmarks, as in the public code. With a mask neither the padding nor
    a masked token does (our choice): a landmark is the mean of its real tokens, one without any is left out.
    norm: the pseudo-inverse starts from Aᵀ over the largest row and column sums, taken of each matrix (`per_head`, our choice: a
    patient's result then does not depend on his batch) or of all patients and heads together (`global`, the public code).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        dropout: float,
        landmarks: int,
        iterations: int = 6,
        convolution: int | None = 33,
        head_width: int | None = None,
        norm: str = "per_head",
    ) -> None:
        super().__init__(width, heads=heads, dropout=dropout, head_width=head_width)
        self.landmarks, self.iterations, self.norm = landmarks, iterations, norm
        self.convolution = None
        if convolution is not None:
            half = convolution // 2
            self.convolution = nn.Conv2d(heads, heads, (convolution, 1), padding=(half, 0), groups=heads, bias=False)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """All [B, heads, N, d_h]."""
        length = q.shape[2]
        front = -length % self.landmarks
        q, k, v = (F.pad(x, (0, 0, front, 0)) for x in (q * q.shape[-1] ** -0.5, k, v))
        if mask is not None:
            mask = F.pad(mask, (front, 0))[:, None]
            q, k, v = (x * mask[..., None] for x in (q, k, v))
        q_mark, there = self._landmarks(q, mask)
        k_mark, _ = self._landmarks(k, mask)
        among = masked_softmax(q_mark @ k_mark.transpose(-1, -2), None if there is None else there[:, :, None])
        if there is not None:
            among = among * there[..., None]  # the row of a landmark that is left out is zero, as its column is
        gathered = F.scaled_dot_product_attention(q_mark, k, v, attn_mask=None if mask is None else mask[:, :, None], scale=1.0)
        middle = pseudo_inverse(among, self.iterations, self.norm).to(gathered.dtype) @ gathered
        out = F.scaled_dot_product_attention(q, k_mark, middle, attn_mask=None if there is None else there[:, :, None], scale=1.0)
        if self.convolution is not None:
            out = out + self.convolution(v)
        return out[:, :, front:]

    def _landmarks(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Means of runs of tokens [B, heads, m, d_h], and which of them have a token, [B, 1, m] (None without a mask)."""
        runs = x.unflatten(2, (self.landmarks, -1))
        if mask is None:
            return runs.mean(dim=3), None
        count = mask.unflatten(2, (self.landmarks, -1)).sum(dim=3)
        return runs.sum(dim=3) / count.clamp(min=1)[..., None], count > 0


def pseudo_inverse(matrix: Tensor, iterations: int, norm: str) -> Tensor:
    """Moore–Penrose inverse of matrix [B, heads, m, m] by Z ← ¼Z(13I − AZ(15I − AZ(7I − AZ))) (Razavi et al. 2014), in float32 or better.

    norm: `per_head` or `global`, see `NystromAttention`.
    """
    with torch.autocast(matrix.device.type, enabled=False):  # half precision diverges
        a = matrix if matrix.dtype == torch.float64 else matrix.float()
        columns, rows = a.abs().sum(-2), a.abs().sum(-1)
        scale = columns.max() * rows.max() if norm == "global" else (columns.amax(-1) * rows.amax(-1))[..., None, None]
        z, eye = a.transpose(-1, -2) / scale, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        for _ in range(iterations):
            az = a @ z
            z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
        return z


class PositionEncoding(nn.Module):
    """PPEG of TransMIL: the tokens but the first as an s × s picture, plus its depth-wise 7, 5 and 3 convolutions; [B, 1 + s², d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        first, rest = tokens[:, :1], tokens[:, 1:]
        side = math.isqrt(rest.shape[1])
        picture = rest.transpose(1, 2).unflatten(2, (side, side))
        picture = picture + sum(layer(picture) for layer in self.filters)
        return torch.cat([first, picture.flatten(2).transpose(1, 2)], dim=1)


def fill_square(tokens: Tensor) -> Tensor:
    """Tokens [B, N, …] with the first of them repeated up to the next square number."""
    count = tokens.shape[1]
    return torch.cat([tokens, tokens[:, : math.ceil(math.sqrt(count)) ** 2 - count]], dim=1)
