"""Self-attention of a set of tokens: exact, and the Nyström approximation."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.errors import choice
from pipeline.nn.dropout import Dropout


class SelfAttention(nn.Module):
    """Multi-head softmax attention [B, N, width] → [B, N, width]: projection to queries, keys and values without bias, output with.

    mask [B, N] bool, True = a real token: others are not looked at. head_width: default width / heads.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, head_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.inner = heads * (head_width or width // heads)
        self.project = nn.Linear(width, 3 * self.inner, bias=False)
        self.output = nn.Linear(self.inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self.project(tokens), 3)
        return self.merge(self.exact(q, k, v, mask))

    def split(self, projected: Tensor, parts: int) -> Tensor:
        """[B, N, parts · heads · d_h] → [parts, B, heads, N, d_h]."""
        return projected.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def exact(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q kᵀ/√d_h) v, all [B, heads, N, d_h]."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])

    def merge(self, mixed: Tensor) -> Tensor:
        """The heads [B, heads, N, d_h] joined and projected, [B, N, width]."""
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))


class NystromAttention(SelfAttention):
    """Attention through m landmarks, linear in N (Xiong et al., AAAI 2021; sizes as in TransMIL, NeurIPS 2021).

    out = softmax(q k̃ᵀ)·pinv(softmax(q̃ k̃ᵀ))·(softmax(q̃ kᵀ) v): q̃, k̃ are means of runs of l = ⌈N/m⌉ consecutive tokens; the first run
    is the one that may be shorter. To it a depth-wise convolution of v over the sequence (kernel `convolution`, one filter a head) is
    added; None leaves it out. Not an exact reformulation of `SelfAttention`, and not invariant to the order of tokens.
    Multiplied from right to left by two fused attentions: nothing of size N × m is stored.

    padding: `exact` (our choice), only tokens are looked at. `reference` (the public codes): without a mask, zero tokens in front fill
    up m runs of l and take part in the softmax and in the landmarks. All of them are alike, and so one stands for all, with their
    number as its weight: the same function, without the cost of m landmarks for a handful of tokens. With a mask neither padding nor a
    masked token ever takes part: a landmark is the mean of its real tokens, one without any weighs 0.
    exact_if_short: up to m tokens the softmax attention itself, with the same parameters; the convolution stays.
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
        padding: str = "exact",
        exact_if_short: bool = False,
    ) -> None:
        super().__init__(width, heads=heads, dropout=dropout, head_width=head_width)
        self.landmarks, self.iterations, self.exact_if_short = landmarks, iterations, exact_if_short
        self.over = choice("norm", norm, {"per_head": (-1,), "global": (0, 1, 2)})
        self.padded = choice("padding", padding, {"exact": False, "reference": True})
        self.convolution = None
        if convolution is not None:
            half = convolution // 2
            self.convolution = nn.Conv2d(heads, heads, (convolution, 1), padding=(half, 0), groups=heads, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, *, rows: int | None = None) -> Tensor:
        """[B, N, width], or with `rows` what it is for the first of the tokens, [B, rows, width], at less than half the cost."""
        if mask is not None:
            tokens = tokens * mask[..., None]  # without biases, its queries, keys and values are zero, too
        for_query, for_rest = self.project.weight.split([self.inner, 2 * self.inner])
        (q,) = self.split(F.linear(tokens[:, :rows], for_query), 1)
        k, v = self.split(F.linear(tokens, for_rest), 2)
        if self.exact_if_short and tokens.shape[1] <= self.landmarks:
            mixed = self.exact(q, k, v, mask)
        else:
            runs = _Runs(tokens, self.landmarks, mask, self.padded)
            if rows is None:
                q_mark = runs.means(q)
            else:  # the mean of queries is the query of the mean
                (q_mark,) = self.split(F.linear(runs.means(tokens[:, None])[:, 0], for_query), 1)
            mixed = self._through(q, q_mark, k, runs.means(k), v, runs)
        if self.convolution is not None:
            reach = None if rows is None else rows + self.convolution.kernel_size[0] // 2
            mixed = mixed + self.convolution(v[:, :, :reach])[:, :, :rows]
        return self.merge(mixed)

    def _through(self, q: Tensor, q_mark: Tensor, k: Tensor, k_mark: Tensor, v: Tensor, runs: _Runs) -> Tensor:
        """The three factors multiplied, [B, heads, rows, d_h].

        A landmark of weight w stands for w equal ones, that is for w equal rows and columns of A = softmax(q̃ k̃ᵀ) [B, heads, m, m].
        With A' the smaller matrix, equal columns summed, √w A'/√w' obeys the same products, sums and transposes as A (it is A in an
        orthonormal basis of those vectors that are alike where landmarks are), so the iteration may run on it.
        """
        if runs.extra_keys:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        gathered = F.scaled_dot_product_attention(q_mark, k, v, attn_mask=_log(runs.key_weight, q))
        bias, scores = _log(runs.weight, q), q_mark @ k_mark.transpose(-1, -2) * q.shape[-1] ** -0.5
        if runs.weight is None or bias is None:
            among = scores.softmax(dim=-1)
            columns = among.sum(dim=-2)  # the sums of the columns of A; its rows sum to 1
            middle = self._inverse(among, columns) @ gathered
        else:
            root = runs.weight.to(scores.dtype).sqrt()[:, None, :, None]
            unroot = torch.where(root > 0, 1 / root, 0)
            among = root * (scores + bias).softmax(dim=-1) * unroot.transpose(-1, -2)
            columns = (root * among).sum(dim=-2) * unroot[..., 0]
            middle = unroot * (self._inverse(among, columns) @ (root * gathered))
        return F.scaled_dot_product_attention(q, k_mark, middle.to(q.dtype), attn_mask=bias)

    def _inverse(self, among: Tensor, columns: Tensor) -> Tensor:
        return pseudo_inverse(among, self.iterations, columns.amax(self.over, keepdim=True)[..., None])


class _Runs:
    """N tokens cut into at most m runs of l = ⌈N/m⌉, the first of which may be shorter, and what stands for the padding.

    weight: of the landmarks [B or 1, ≤ m + 1], key_weight: of the keys [B or 1, N or N + 1]; None = all 1.
    """

    def __init__(self, tokens: Tensor, landmarks: int, mask: Tensor | None, padded: bool) -> None:
        count = tokens.shape[1]
        self.length = -(-count // landmarks)
        self.count = -(-count // self.length)
        self.front = self.count * self.length - count
        padding = landmarks * self.length - count if padded and mask is None else 0
        empty = padding // self.length
        self.extra_keys, self.extra_runs = int(padding > 0), int(empty > 0)
        self.weight, self.key_weight, self.divisor = None, None, None
        if mask is not None:
            real = F.pad(mask, (self.front, 0)).unflatten(1, (self.count, self.length)).sum(dim=2)  # [B, runs]
            self.weight, self.key_weight, self.divisor = real > 0, mask, real.clamp(min=1)[:, None, :, None]
        elif self.front and not padded:
            self.divisor = tokens.new_full((self.count, 1), self.length)
            self.divisor[0] -= self.front
        if empty:
            self.weight = F.pad(tokens.new_ones(1, self.count), (0, 1), value=empty)
        if padding:
            self.key_weight = F.pad(tokens.new_ones(1, count), (0, 1), value=padding)

    def means(self, x: Tensor) -> Tensor:
        """Landmarks of x [B, heads, N, d], [B, heads, ≤ m + 1, d]: means of the runs, and a zero for the runs that are padding."""
        if self.length > 1:
            x = F.pad(x, (0, 0, self.front, 0)).unflatten(2, (self.count, self.length)).sum(dim=3)
            x = x / (self.length if self.divisor is None else self.divisor)
        return F.pad(x, (0, 0, 0, 1)) if self.extra_runs else x


def _log(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to scores so that a softmax counts each column `weight` [B, N] times, [B, 1, 1, N]; weight 0: not at all."""
    return None if weight is None else weight.to(like.dtype).log().clamp(min=torch.finfo(like.dtype).min)[:, None, None]


def pseudo_inverse(matrix: Tensor, iterations: int, scale: Tensor) -> Tensor:
    """Moore–Penrose inverse of A = matrix [..., m, m] by Z ← ¼Z(13I − AZ(15I − AZ(7I − AZ))) from Aᵀ / scale (Razavi et al. 2014).

    In float32 or better. scale [..., 1, 1]: at least the product of the largest row and the largest column sum of |A| to converge.
    """
    with torch.autocast(matrix.device.type, enabled=False):  # half precision diverges
        a = (matrix if matrix.dtype == torch.float64 else matrix.float()).flatten(0, -3)
        z = a.transpose(1, 2) / scale.to(a.dtype).expand(*matrix.shape[:-2], 1, 1).flatten(0, -3)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        first, second, third = 1.75 * eye, 3.75 * eye, 3.25 * eye  # the factor ¼ multiplied in
        for _ in range(iterations):
            az = torch.bmm(a, z)
            inner = torch.baddbmm(second, az, first - 0.25 * az, alpha=-1)
            z = torch.bmm(z, torch.baddbmm(third, az, inner, alpha=-1))
        return z.view(matrix.shape)
