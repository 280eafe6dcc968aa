"""SurvQ: learned queries compress patches and pathways, one self-attention mixes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError
from pipeline.models.interface import Inputs, Output, SurvivalModel, choice
from pipeline.models.registry import register
from pipeline.nn.attention import CrossAttention, masked_mean
from pipeline.nn.pathways import GroupedEncoder

WIDTH = 256
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

    hist_queries, geno_queries: false takes the raw tokens X_H (X_G) instead of query tokens. self_attn: false gives
    z = [mean of histology tokens; mean of gene tokens] ∈ R^512 (our choice); self_attn needs both query sets here, N² otherwise.
    queries_trainable: false = random and frozen (Table 4). query_init_std: queries ~ N(0, std) (our choice).
    residual_norm, ffn, attn_bias, heads: for exploration. residual_norm adds the queries and a LayerNorm; ffn a residual
    256→512→256 ReLU layer. patch_dropout: PIBD's value (our choice). folded: no patch key or value is formed (same function).
    A patient who lacks a modality has no tokens of it, in the self-attention and in the mean (our choice); without self_attn its
    half of z is zero. Set ``model.keep_attention = True`` to get the attention maps; they are not kept otherwise.
    """

    modalities = ("wsi", "omics")

    def __init__(
        self,
        inputs: Inputs,
        *,
        groups: str,
        hist_queries: bool,
        geno_queries: bool,
        self_attn: bool,
        n_query_h: int,
        n_query_g: int,
        queries_trainable: bool,
        query_init_std: float,
        patch_proj: str,
        patch_dropout: float,
        pathway_dropout: float,
        residual_norm: bool,
        ffn: bool,
        attn_bias: bool,
        heads: int,
        folded: bool,
    ) -> None:
        super().__init__()
        if self_attn and not (hist_queries and geno_queries):
            raise InputError("SurvQ mixes query tokens only", found="self_attn: true", expected="self_attn: false without both query sets")
        self.keep_attention = False
        self.grouping, self.sizes = groups, inputs.grouping(groups, "SurvQ")
        self.patch_width = inputs.bag("wsi", "SurvQ")
        self.patches = choice("patch_proj", patch_proj, {"mlp": _mlp, "linear": _linear})(self.patch_width, patch_dropout)
        self.pathways = GroupedEncoder(self.sizes, WIDTH, pathway_dropout)
        block = {"heads": heads, "bias": attn_bias, "residual_norm": residual_norm, "ffn": ffn}

        def compress(count: int) -> _Queries:
            return _Queries(count, query_init_std, queries_trainable, _Attention(folded=folded, **block))

        self.hist_queries = compress(n_query_h) if hist_queries else None
        self.geno_queries = compress(n_query_g) if geno_queries else None
        self.mixer = _Attention(folded=False, **block) if self_attn else None
        self.head = nn.Sequential(nn.Linear(WIDTH if self_attn else 2 * WIDTH, 64), nn.ReLU(), nn.Linear(64, inputs.bins))

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; with `keep_attention` the maps ``wsi`` [B, N_h, N], ``omics`` [B, N_g, P], ``mixed`` [B, N_h+N_g, ·].

        Raises `InputError` for a patient with neither modality.
        """
        self.check(patient)
        attention: dict[str, Tensor] = {}
        bag = patient.bag_or_zeros("wsi", self.patch_width)
        hist, has_hist = self._compress("wsi", self.hist_queries, self.patches(bag.features), bag.mask, attention)
        genes = self.pathways(patient.groups_or_zeros(self.grouping, sum(self.sizes)))
        known = patient.has("omics")[:, None].expand(genes.shape[:2])
        geno, has_geno = self._compress("omics", self.geno_queries, genes, known, attention)
        if self.mixer is None:
            z = torch.cat([masked_mean(hist, has_hist), masked_mean(geno, has_geno)], dim=1)
        else:
            tokens, mask = torch.cat([hist, geno], dim=1), torch.cat([has_hist, has_geno], dim=1)
            mixed, weights = self.mixer(tokens, tokens, mask)
            self._keep("mixed", weights, attention)
            z = masked_mean(mixed, mask)
        return Output(self.head(z), attention=attention)

    def _compress(
        self, name: str, queries: _Queries | None, tokens: Tensor, mask: Tensor, attention: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What stands for a modality, [B, M, 256], and which of it counts, [B, M]: query tokens, or the raw tokens themselves."""
        if queries is None:
            return tokens, mask
        compressed, weights = queries(tokens, mask)
        self._keep(name, weights, attention)
        return compressed, mask.any(dim=1, keepdim=True).expand(compressed.shape[:2])

    def _keep(self, name: str, weights: Tensor, attention: dict[str, Tensor]) -> None:
        if self.keep_attention:
            attention[name] = weights.mean(dim=1)


class _Attention(nn.Module):
    """One of the three attentions (eqs 1–3), with the optional residual, norm and FFN that the paper does not have."""

    def __init__(self, *, heads: int, bias: bool, residual_norm: bool, ffn: bool, folded: bool) -> None:
        super().__init__()
        self.attend = CrossAttention(WIDTH, heads=heads, bias=bias, output=False, folded=folded)
        self.norm = nn.LayerNorm(WIDTH) if residual_norm else None
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)) if ffn else None

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, 256] and the weights [B, heads, M, N]."""
        result, weights, _ = self.attend(queries, tokens, mask)
        result = result if self.norm is None else self.norm(queries + result)
        return (result if self.ffn is None else result + self.ffn(result)), weights


class _Queries(nn.Module):
    """Learned queries, the same for all patients, that look at a modality's tokens."""

    def __init__(self, count: int, std: float, trainable: bool, attention: _Attention) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, count, WIDTH) * std, requires_grad=trainable)
        self.attention = attention

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(self.queries, tokens, mask)


def _mlp(width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, WIDTH))


def _linear(width: int, dropout: float) -> nn.Module:
    return nn.Linear(width, WIDTH)
