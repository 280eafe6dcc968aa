"""CA-MLIF: two modalities exchange their contexts, are fused twice at low rank, and what was fused is weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.attention import CrossAttention, masked_softmax
from pipeline.nn.context_attention import ContextAttention, Tokens, split_heads
from pipeline.nn.dropout import Dropout
from pipeline.nn.gating import LowRankInteraction, WeighedConcatenation
from pipeline.nn.pathways import GroupedEncoder
from pipeline.nn.self_attention import NystromAttention
from pipeline.nn.snn import snn_layers


@register(
    paper="An et al., AAAI 2025",
    modalities=("wsi", "omics"),
    reference=Inputs(bags={"wsi": 1024}, groups={"families": (58, 290, 290, 155)}),
    patches=2000,
)
class CAMLIF(SurvivalModel):
    """Two modalities P and C → logits [B, bins]; Cross-Attention and Multimodal Low-rank Interaction Fusion.

    Each modality becomes tokens [B, K, d]. Its encoder reads a class token P [d] and the tokens X (eqs 1, 2), `ca_layers` of
    cross-attention give it the other's context (eqs 3, 4), its decoder, built like the encoder, reads P̂ [d] from what comes out.
    Class tokens are reduced to `fusion_width` where d is larger (our choice), then gated and fused at low rank: f₀ = F(P, C) and
    f₁ = F(P̂, Ĉ); h = MLP(OWC[f₀; f₁; P; C]) (eq. 5); logits = Linear([h; clinical]), a single one bounded to 6σ(·) − 3 (`bounded`,
    code). In training `losses["alignment"]` = alpha · L_sim, L_sim = mean|P − P̂| + mean|C − Ĉ| (eqs 6, 7).

    modality_a, modality_b: a bag; the cohort's genes (`omics`) as the grouping `groups`, or whole where that is null; or a table. A
    vector is repeated `n_rep` times with independent dropout (code); in evaluation one copy stands for all, exactly.
    embedded: tables of d columns that are embeddings already and skip the network. width: d, or `auto` (our choice): 32 where both
    are vectors, else 256. clinical: a table for the head, or null. branches: both, or `a`, `b` alone (Table 1): the head on its class
    token, for a vector on an MLP. encoder: msa2, eqs 1–2 (N² operations, no N × N matrix), or nystrom1, the code's one Nyström layer,
    linear in N (copies of a vector keep exact attention, our choice).
    cross_attention: context (eqs 3, 4), mha (code: ordinary attention, no residual, no norm) or none (Table 3: f₀, P, C).
    context: KᵀV is the `sum` over tokens (eq. 3) or their `mean`, which a bag's size does not change (our choice).
    residual: U is joined with the modality's `own` residual vectors (CMX, from where eqs 3–4 come) or with the `other`'s (text);
    tokens of two modalities do not correspond, so of these the mean is taken (our choice).
    second_fusion: false = f₁ alone (Table 3). owc_raw: P, C in OWC. share_fusion: one F, or one each. detach: the alignment moves
    P̂, Ĉ but not P, C (CMTA, from where α comes). A patient without `clinical` has zeros there, its training mean.
    missing (our choice, the paper has nothing): `native`, an absent modality gives its partner U = 0, is [0; 1] in F, 0 in OWC and
    not aligned; `zeros`, the protocol of the missing-modality benchmark, where an absent bag is one zero patch; `refuse`.
    Key biases cancel in the softmax and get no gradient.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        modality_a: str,
        modality_b: str,
        groups: str | None,
        clinical: str | None,
        embedded: Sequence[str],
        branches: str,
        width: int | str,
        heads: int,
        encoder: str,
        bag_hidden: Sequence[int],
        group_hidden: int,
        vector_hidden: Sequence[int],
        alone_hidden: Sequence[int],
        n_rep: int,
        ca_layers: int,
        cross_attention: str,
        context: str,
        residual: str,
        fusion_width: int,
        lmf_width: int,
        rank: int,
        fused_width: int,
        share_fusion: bool,
        second_fusion: bool,
        owc_raw: bool,
        alpha: float,
        detach: bool,
        dropout: float,
        snn_dropout: float,
        bounded: bool,
        missing: str,
    ) -> None:
        super().__init__()
        self.names = choice("branches", branches, {"both": (modality_a, modality_b), "a": (modality_a,), "b": (modality_b,)})
        self.clinical, self.modalities = clinical, (*self.names, clinical) if clinical else self.names
        self.requires = choice("missing", missing, {"native": (), "zeros": (), "refuse": self.names})
        self.zeros, self.bounded, self.alpha, self.detach = missing == "zeros", bounded and inputs.bins == 1, alpha, detach
        nystrom = choice("encoder", encoder, {"msa2": False, "nystrom1": True})
        self.ordered = nystrom and any(name in inputs.bags for name in self.names)  # landmarks are runs of instances
        options = {"mean": choice("context", context, {"sum": False, "mean": True})}
        options |= {"other": choice("residual", residual, {"own": False, "other": True})}
        kinds = {"context": partial(ContextAttention, heads=heads, **options), "mha": _QueryAttention, "none": None}
        kind, both = choice("cross_attention", cross_attention, kinds), branches == "both"
        vectors = [name not in inputs.bags and (name != "omics" or groups is None) for name in self.names]
        d = (32 if all(vectors) else 256) if width == "auto" else int(width)
        _check(self.names, d, heads, fusing=second_fusion or kind is not None)

        def source(name: str, vector: bool) -> nn.Module:
            if name in inputs.bags:
                return _Bag(name, inputs.bags[name], [*bag_hidden, d])
            if not vector:
                return _Groups(inputs, str(groups), group_hidden, d, snn_dropout)
            hidden = None if name in embedded else vector_hidden if both else alone_hidden
            return _Vector(inputs, name, d, hidden, snn_dropout, copies=n_rep if both else None, dropout=dropout)

        def encoder_of(vector: bool) -> nn.Module:
            if nystrom and not vector:  # padding takes no part (in the code it does)
                return _Encoder(d, [NystromAttention(d, heads=heads, dropout=dropout, landmarks=d // 4)])
            return _Encoder(d, [_SelfAttention(d, heads, dropout) for _ in range(1 if nystrom else 2)])

        self.sources = nn.ModuleList(map(source, self.names, vectors))
        self.encoders = nn.ModuleList(map(encoder_of, vectors)) if both or not vectors[0] else None
        self.cross = nn.ModuleList(kind(d) for _ in range(ca_layers)) if both and kind else None
        self.decoders = nn.ModuleList(map(encoder_of, vectors)) if self.cross is not None else None
        self.fusion = None
        if both:
            pairs = (0,) if kind is None else (0, 1) if second_fusion else (1,)
            interact = [
                LowRankInteraction(fusion_width, lmf_width, rank, fused_width, dropout) for _ in pairs[: 1 if share_fusion else None]
            ]
            self.fusion = _Fusion(d, fusion_width, interact, pairs, fused_width, dropout, raw=owc_raw and 0 in pairs)
        self.clinical_width = inputs.vector(clinical, "CA-MLIF") if clinical else 0
        self.head = nn.Linear((fused_width if both else d) + self.clinical_width, inputs.bins)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; details ``owc`` [B, blocks], the weights of OWC.

        With `explain`, attention of the class tokens to the tokens [B, K], mean over heads, without their own share: the modality's
        name (encoder) and ``<name>_decoder``; none for vectors and the Nyström layer. Raises `InputError` for a patient refused.
        """
        self.check(patient)
        if self.ordered:
            return Output.joined([self._batch(patient.single(row)) for row in range(patient.size)])
        return self._batch(patient)

    def _batch(self, patient: Patient) -> Output:
        has = [patient.has(name) | self.zeros for name in self.names]
        tokens = [source(patient) for source in self.sources]
        attention, details, losses = {}, {}, {}
        first, inner = self._encode(self.encoders, tokens, has, "", attention)
        pairs = [first]
        if self.cross is not None:
            for layer in self.cross:
                inner = layer(inner, has)
            pairs += [self._encode(self.decoders, inner, has, "_decoder", attention)[0]]
            if self.training and self.alpha:
                losses["alignment"] = self.alpha * self._misalignment(*pairs, has)
        if self.fusion is None:
            vector = first[0] * has[0][:, None]
        else:
            vector, details["owc"] = self.fusion(pairs, has)
        if self.clinical:
            known = patient.vectors.get(self.clinical, vector.new_zeros(patient.size, self.clinical_width))
            vector = torch.cat([vector, known * patient.has(self.clinical)[:, None]], dim=1)
        logits = self.head(vector)
        return Output(6 * logits.sigmoid() - 3 if self.bounded else logits, losses, attention=attention, details=details)

    def _encode(
        self, encoders: nn.ModuleList | None, tokens: list[Tokens], has: list[Tensor], suffix: str, attention: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tokens]]:
        """Class tokens [B, d] and tokens of every modality, the latter only where cross-attention will read them."""
        if encoders is None:  # one vector, which needs none
            return [tokens[0].values[:, 0]], tokens
        if self.explain:
            for name, source, encoder, x, there in zip(self.names, self.sources, encoders, tokens, has, strict=True):
                if isinstance(encoder.layers[-1], _SelfAttention) and not isinstance(source, _Vector):
                    attention[name + suffix] = encoder.attended(x) * there[:, None]
        last = self.cross is None or encoders is self.decoders
        encoded = [encoder(x, class_only=last) for encoder, x in zip(encoders, tokens, strict=True)]
        return [first for first, _ in encoded], [inner for _, inner in encoded]

    def _misalignment(self, first: list[Tensor], second: list[Tensor], has: list[Tensor]) -> Tensor:
        """L_sim (eq. 6), mean over patients; an absent modality has no term."""
        fixed = [a.detach() if self.detach else a for a in first]
        apart = [(a - b).abs().mean(dim=1) * there for a, b, there in zip(fixed, second, has, strict=True)]
        return sum(apart).mean()


def _check(names: tuple[str, ...], width: int, heads: int, *, fusing: bool) -> None:
    """Raise `InputError` for options that make no model together."""
    if len(set(names)) < len(names):
        raise InputError("CA-MLIF fuses two modalities", found=f"{names[0]} twice", remedy="Change modality_a or modality_b.")
    if width % heads:
        raise InputError("the width of CA-MLIF does not divide into heads", found=f"{width} / {heads}", expected="a whole number")
    if not fusing:
        raise InputError("cross_attention none leaves only the first fusion", remedy="Set second_fusion to true.")


class _Bag(nn.Module):
    """Instances [B, N, w] → tokens [B, N, d] by ReLU layers of the given widths (one is our choice; two as the code does for radiomics)."""

    def __init__(self, name: str, width_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.name, self.width_in = name, width_in
        self.embed = snn_layers(width_in, widths, 0.0, "relu")

    def forward(self, patient: Patient) -> Tokens:
        bag = patient.bag_or_zeros(self.name, self.width_in)
        mask = bag.mask.clone()
        mask[:, 0] |= ~patient.has(self.name)  # an absent bag is one zero patch
        return Tokens(self.embed(bag.features), None if mask.all() else mask)


class _Groups(nn.Module):
    """Gene groups [B, Σ n_g] → tokens [B, G, d]; as in the code, no dropout after the second layer."""

    def __init__(self, inputs: Inputs, grouping: str, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        sizes = inputs.grouping(grouping, "CA-MLIF")
        self.grouping, self.total = grouping, sum(sizes)
        self.embed = GroupedEncoder(sizes, width, dropout, hidden=hidden, dropout_out=0.0)

    def forward(self, patient: Patient) -> Tokens:
        return Tokens(self.embed(patient.groups_or_zeros(self.grouping, self.total)))


class _Vector(nn.Module):
    """A vector [B, w] → tokens [B, copies, d]: a SiLU network, then copies, each with a dropout of its own.

    In evaluation they are equal, and one stands for all. hidden None: no network. copies None: one token without dropout.
    """

    def __init__(
        self, inputs: Inputs, name: str, d: int, hidden: Sequence[int] | None, snn: float, *, copies: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.name, self.length, self.copies = name, inputs.vector(name, "CA-MLIF"), copies
        if hidden is None and self.length != d:
            remedy = f"Take {name} out of `embedded`, or set `width`."
            raise InputError(f"table {name!r} is no embedding of CA-MLIF's width", found=self.length, expected=d, remedy=remedy)
        self.embed = nn.Identity() if hidden is None else snn_layers(self.length, [*hidden, d], snn, "silu")
        self.dropout = Dropout(dropout)

    def forward(self, patient: Patient) -> Tokens:
        has = patient.has(self.name)
        vector = patient.vectors.get(self.name, torch.zeros(len(has), self.length, device=has.device))
        token = self.embed(vector)[:, None]
        if self.copies and self.training:
            return Tokens(self.dropout(token.expand(-1, self.copies, -1)))
        return Tokens(token, copies=self.copies)


class _Encoder(nn.Module):
    """Class token and tokens → layers X ← X + Drop(MSA(LN(X))), no feed-forward (eqs 1, 2) → LN (code)."""

    def __init__(self, width: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens, *, class_only: bool) -> tuple[Tensor, Tokens]:
        """The class token [B, d] and the tokens; `class_only` spares the last layer every other row: the tokens then come back empty."""
        x, bias, rows = self._before_last(tokens), tokens.key_bias(), 1 if class_only else None
        x = self.norm(x[:, :rows] + self.layers[-1](self.norms[-1](x), bias, rows=rows))
        return x[:, 0], replace(tokens, values=x[:, 1:])

    def attended(self, tokens: Tokens) -> Tensor:
        """How the class token's attention to the tokens is shared among them in the last layer, [B, K]."""
        return self.layers[-1].attended(self.norms[-1](self._before_last(tokens)), tokens.mask)

    def _before_last(self, tokens: Tokens) -> Tensor:
        """What the last layer reads, [B, 1 + K, d]."""
        x, bias = torch.cat([self.first.expand(len(tokens.values), -1, -1), tokens.values], dim=1), tokens.key_bias()
        for norm, layer in zip(self.norms[:-1], self.layers[:-1], strict=True):
            x = x + layer(norm(x), bias)
        return x


class _SelfAttention(nn.Module):
    """Multi-head softmax attention with biases, Drop(W_o softmax(q kᵀ/√d_h + bias) v); `rows`: only for the first of the tokens."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.output, self.dropout = nn.Linear(width, width), Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None, *, rows: int | None = None) -> Tensor:
        """[B, N, d] → [B, rows, d]."""
        q, k, v = (split_heads(part, self.heads) for part in (self.query(x[:, :rows]), *self.key_value(x).chunk(2, dim=-1)))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))

    def attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Weights of the first token over the others [B, N − 1], mean over heads."""
        q, k = (split_heads(part, self.heads) for part in (self.query(x[:, :1]), self.key_value(x[:, 1:]).chunk(2, dim=-1)[0]))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return masked_softmax(scores, None if mask is None else mask[:, None, None]).mean(dim=1)[:, 0]


class _QueryAttention(nn.Module):
    """The code's cross-attention: one head, softmax(Q Kᵀ/√d) V both ways, no residual, no norm; it stores K × K′ weights.

    A modality whose partner is absent keeps its tokens (our choice).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.ModuleList(CrossAttention(width, bias=True, output=True) for _ in range(2))

    def forward(self, tokens: list[Tokens], has: list[Tensor]) -> list[Tokens]:
        changed = []
        for m, n in ((0, 1), (1, 0)):
            values, _, _ = self.attend[m](tokens[m].values, tokens[n].values, tokens[n].mask)
            changed.append(replace(tokens[m], values=torch.where(has[n][:, None, None], values, tokens[m].values)))
        return changed


class _Fusion(nn.Module):
    """The second stage: F of the pairs of class tokens that are fused (0 original, 1 enhanced), then OWC and MLP (eq. 5).

    interact: one F for all pairs, or one each. raw: P and C themselves are in OWC. MLP: Drop(ReLU(Linear)).
    """

    def __init__(
        self, d: int, width: int, interact: list[LowRankInteraction], pairs: Sequence[int], width_out: int, dropout: float, *, raw: bool
    ) -> None:
        super().__init__()
        self.pairs, self.raw = pairs, raw
        self.reduce = nn.ModuleList(nn.Sequential(nn.Linear(d, width), nn.ReLU()) if d != width else nn.Identity() for _ in range(2))
        self.interact = nn.ModuleList(interact)
        size = len(pairs) * width_out + 2 * width * raw
        self.owc = WeighedConcatenation(size)
        self.mlp = nn.Sequential(nn.Linear(size, width_out), nn.ReLU(), Dropout(dropout))

    def forward(self, tokens: list[list[Tensor]], has: list[Tensor]) -> tuple[Tensor, Tensor]:
        """h [B, width_out] and the weights of OWC [B, size] from pairs of class tokens [B, d]."""
        narrow = [[f(x) * there[:, None] for f, x, there in zip(self.reduce, pair, has, strict=True)] for pair in tokens]
        blocks = [self.interact[at % len(self.interact)](*narrow[pair], has) for at, pair in enumerate(self.pairs)]
        weighed, weights = self.owc([*blocks, *narrow[0]] if self.raw else blocks)
        return self.mlp(weighed), weights
