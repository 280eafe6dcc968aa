"""SurvQ: learned queries compress patches and pathways, one self-attention mixes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.attention import CrossAttention, masked_mean
from pipeline.nn.dropout import Dropout
from pipeline.nn.pathways import GroupedEncoder

# 50 Hallmark sets (7110 memberships) and 281 Reactome sets (2635). The sizes are levelled: counts depend on number and sum alone.
PATHWAYS = (143,) * 10 + (142,) * 40 + (10,) * 106 + (9,) * 175


@register(
    paper="Multimodal cancer survival analysis with learnable queries, ICLR 2026 submission 7352",
    modalities=("wsi", "omics"),
    reference=Inputs(bags={"wsi": 1024}, groups={"pathways": PATHWAYS}),
    patches=4096,
)
class SurvQ(SurvivalModel):
    """Patches [B, N, d] and P pathways → logits [B, bins]. No public code exists; choices the paper leaves open are marked.

    X_H [B, N, 256] by an MLP d→512→256 (sec. 4.3; sec. 3.1 says linear: `patch_proj`), X_G [B, P, 256] by one SNN a pathway.
    Q'_H = softmax(Q_H W_q (X_H W_k)ᵀ/√256) X_H W_v (eq. 1), likewise Q'_G (eq. 2), M' = self-attention over M = [Q'_H; Q'_G]
    (eq. 3), each without residual, norm, FFN or output projection since the equations show none. z = mean over the tokens of
    M', then 256→64→bins (our choice). Averaging the sequence is what yields R^256; the paper prints z ∈ R^(N_h+N_g).

    modalities: one bag of instances and `omics`, or one of the two alone (our choice: its queries are then mixed among themselves).
    hist_queries, geno_queries: false takes the raw tokens X_H (X_G) instead of query tokens. self_attn: false gives
    z = [mean of histology tokens; mean of gene tokens] ∈ R^512 (our choice); self_attn needs both query sets here, N² otherwise.
    queries_trainable: false = random and frozen (Table 4). query_init_std: queries ~ N(0, std) (our choice).
    residual_norm, ffn, attn_bias, heads: for exploration. residual_norm adds the queries and a LayerNorm; ffn a residual
    width→2·width→width ReLU layer; attn_bias a bias of queries and values (the softmax cancels that of keys). patch_dropout: PIBD's
    value (our choice). folded: no patch key or value is formed, nor X_H where that costs less (same function).
    A patient who lacks a modality has no tokens of it, in the self-attention and in the mean (our choice); without self_attn its
    half of z is zero.

    No N × queries matrix is kept: memory grows with N·512. Set ``model.explain = True`` for the maps (their `topk` of 3 patches and 6
    pathways a query are Figs 4 and 6) and `details`: ``<modality>_queries`` [B, N_h or N_g, 256], the outputs Q' (Fig. 5 embeds them);
    ``omics_to_wsi`` [B, N_g, N_h], what the gene queries take from the histology queries in the self-attention (rows sum to less than
    1), and the same carried on to the patches, ``omics_to_wsi_instances`` [B, N_g, N] (Figs 7, 8); ``wsi_to_omics`` [B, N_h, N_g],
    whose largest column sum is the gene query of Fig. 8, and ``wsi_to_omics_instances`` [B, N_h, P]; ``<modality>_retention``
    [B, 2, 2] (Table 6, `pca_retention`): in the space of the tokens X and of the values X W_v (our choice: the paper does not say
    which, and Q' lies in the latter), of the tokens and of the outputs Q'.
    """

    modalities = ("wsi", "omics")

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str],
        groups: str,
        hist_queries: bool,
        geno_queries: bool,
        self_attn: bool,
        n_query_h: int,
        n_query_g: int,
        queries_trainable: bool,
        query_init_std: float,
        width: int,
        patch_proj: str,
        patch_hidden: int,
        patch_dropout: float,
        pathway_dropout: float,
        residual_norm: bool,
        ffn: bool,
        attn_bias: bool,
        heads: int,
        folded: bool,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.bag, self.omics = _sides(self.modalities)
        sides = [hist_queries] * (self.bag is not None) + [geno_queries] * self.omics
        if self_attn and not all(sides):
            raise InputError("SurvQ mixes query tokens only", found="self_attn: true", expected="self_attn: false without both query sets")
        block = {"width": width, "heads": heads, "bias": attn_bias, "residual_norm": residual_norm, "ffn": ffn}

        def compress(count: int) -> _Queries:
            return _Queries(count, query_init_std, queries_trainable, width, _Attention(folded=folded, **block))

        self.patches: nn.Sequential | None = None
        if self.bag is not None:
            self.patch_width = inputs.bag(self.bag, "SurvQ")
            project = choice("patch_proj", patch_proj, {"mlp": _mlp, "linear": _linear})
            self.patches = project(self.patch_width, patch_hidden, width, patch_dropout)
            self.hist_queries = compress(n_query_h) if hist_queries else None
        if self.omics:
            self.grouping, self.sizes = groups, inputs.grouping(groups, "SurvQ")
            self.pathways = GroupedEncoder(self.sizes, width, pathway_dropout)
            self.geno_queries = compress(n_query_g) if geno_queries else None
        self.mixer = _Attention(folded=False, **block) if self_attn else None
        self.head = nn.Sequential(nn.Linear(width if self_attn else len(sides) * width, 64), nn.ReLU(), nn.Linear(64, inputs.bins))

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; with `explain` the maps ``wsi`` [B, N_h, N], ``omics`` [B, N_g, P], ``mixed`` [B, N_h+N_g, N_h+N_g].

        Raises `InputError` for a patient with none of the modalities.
        """
        self.check(patient)
        sides = self._read(patient)
        pairs = [side.compressed() for side in sides]  # tokens [B, M, width] and which of them count [B, M], a modality
        if self.mixer is None:
            z = torch.cat([masked_mean(tokens, real) for tokens, real in pairs], dim=1)
        else:
            tokens, real = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
            z = masked_mean(self.mixer(tokens, tokens, real), real)
        attention, details = self._explained(sides, pairs) if self.explain else ({}, {})
        return Output(self.head(z), attention=attention, details=details)

    def _read(self, patient: Patient) -> list[_Side]:
        """What the queries of each modality look at."""
        sides = []
        if self.patches is not None:
            bag = patient.bag_or_zeros(self.bag, self.patch_width)
            sides.append(_Side(self.bag, self.hist_queries, self.patches[:-1](bag.features), self.patches[-1], bag.mask))
        if self.omics:
            genes = self.pathways(patient.groups_or_zeros(self.grouping, sum(self.sizes)))
            known = patient.has("omics")[:, None].expand(genes.shape[:2])
            sides.append(_Side("omics", self.geno_queries, genes, None, known))
        return sides

    def _explained(self, sides: Sequence[_Side], pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Attention maps and details, see the class."""
        attention: dict[str, Tensor] = {}
        details: dict[str, Tensor] = {}
        for side, (outputs, _) in zip(sides, pairs, strict=True):
            if side.queries is not None:
                tokens = side.tokens()
                attention[side.name] = side.queries.map(tokens, side.mask)
                details[f"{side.name}_queries"] = outputs
                details[f"{side.name}_retention"] = side.queries.retention(tokens, side.mask, outputs)
        if self.mixer is not None:
            tokens, real = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
            attention["mixed"] = self.mixer.map(tokens, tokens, real)
            count = pairs[0][0].shape[1]
            rows = dict(zip([side.name for side in sides], (slice(count), slice(count, None)), strict=False))
            for one, other in permutations(rows, 2):
                across = attention["mixed"][:, rows[one], rows[other]]
                details[f"{one}_to_{other}"] = across
                details[f"{one}_to_{other}_instances"] = across @ attention[other]
        return attention, details


class _Attention(nn.Module):
    """One of the three attentions (eqs 1–3), with the optional residual, norm and FFN that the paper does not have."""

    def __init__(self, *, width: int, heads: int, bias: bool, residual_norm: bool, ffn: bool, folded: bool) -> None:
        super().__init__()
        self.attend = CrossAttention(width, heads=heads, bias=bias, key_bias=False, output=False, folded=folded)
        self.norm = nn.LayerNorm(width) if residual_norm else None
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) if ffn else None

    def forward(self, queries: Tensor, instances: Tensor, mask: Tensor, last: nn.Linear | None = None) -> Tensor:
        """[B, M, width] of queries [B or 1, M, width]; instances [B, N, width], or what `last` makes such of."""
        result = self.attend.stream(queries, instances, mask, last=last)
        result = result if self.norm is None else self.norm(queries + result)
        return result if self.ffn is None else result + self.ffn(result)

    def map(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The weights [B, M, N], mean over the heads."""
        return self.attend(queries, tokens, mask)[1].mean(dim=1)


class _Queries(nn.Module):
    """Learned queries, the same for all patients, that look at a modality's tokens."""

    def __init__(self, count: int, std: float, trainable: bool, width: int, attention: _Attention) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, count, width) * std, requires_grad=trainable)
        self.attention = attention

    def forward(self, instances: Tensor, mask: Tensor, last: nn.Linear | None) -> Tensor:
        return self.attention(self.queries, instances, mask, last)

    def map(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.attention.map(self.queries, tokens, mask)

    def retention(self, tokens: Tensor, mask: Tensor, outputs: Tensor) -> Tensor:
        """`pca_retention` of every patient [B, 2, 2], in the space of the tokens and of the values."""
        spaces = (tokens, self.attention.attend.value(tokens))
        return torch.stack([torch.stack([pca_retention(x[row][mask[row]], outputs[row]) for x in spaces]) for row in range(len(mask))])


class _Side(NamedTuple):
    """A modality: its instances [B, N, w], the linear layer they still lack to be tokens, and which of them are real [B, N]."""

    name: str
    queries: _Queries | None
    instances: Tensor
    last: nn.Linear | None
    mask: Tensor

    def tokens(self) -> Tensor:
        """X, [B, N, width]."""
        return self.instances if self.last is None else self.last(self.instances)

    def compressed(self) -> tuple[Tensor, Tensor]:
        """What stands for the modality, [B, M, width], and which of it counts, [B, M]: query tokens, or the raw tokens themselves."""
        if self.queries is None:
            return self.tokens(), self.mask
        compressed = self.queries(self.instances, self.mask, self.last)
        return compressed, self.mask.any(dim=1, keepdim=True).expand(compressed.shape[:2])


def pca_retention(tokens: Tensor, outputs: Tensor, share: float = 0.99) -> Tensor:
    """How much variance the principal subspace keeps: [2], of the tokens [N, d] and of the outputs [M, d] (Table 6).

    The subspace has the fewest principal components of the tokens that reach `share` of their variance (our choice: 99 %). Of the
    outputs: Σ‖P(q − x̄)‖²/Σ‖q − x̄‖² with x̄ the mean of the tokens. NaN where there is nothing to divide by.
    """
    mean = tokens.double().mean(dim=0)
    centred, shifted = tokens.double() - mean, outputs.double() - mean
    variances, components = torch.linalg.eigh((centred.T @ centred).nan_to_num())  # ascending
    explained = variances.flip(0).clamp(min=0).cumsum(0) / variances.clamp(min=0).sum()
    count = int((explained < share).sum()) + 1
    inside = shifted @ components[:, -count:]
    return torch.stack([explained[count - 1], inside.square().sum() / shifted.square().sum()]).to(tokens.dtype)


def _sides(modalities: Sequence[str]) -> tuple[str | None, bool]:
    """The bag among the modalities, and whether `omics` is; raises `InputError` for more than one bag, or none of the two."""
    bags = [name for name in modalities if name != "omics"]
    if len(bags) > 1 or not modalities:
        found, expected = ", ".join(modalities) or "none", "one bag of instances, omics, or both"
        raise InputError("SurvQ reads two modalities at most", found=found, expected=expected, remedy="Set the model's `modalities`.")
    return (bags[0] if bags else None), "omics" in modalities


def _mlp(width_in: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(inplace=True), Dropout(dropout), nn.Linear(hidden, width))


def _linear(width_in: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width))
