"""SNNTrans: a self-normalising network a gene group, then a Transformer over the groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.position import PPEG, fill_square
from pipeline.nn.self_attention import NystromAttention, SelfAttention
from pipeline.nn.snn import init_self_normalising, snn_layers

LANDMARKS = 128  # TransMIL's rule, half the width, at the width of 256


@register(
    paper="a baseline of MOTCat and CMTA (ICCV 2023) without a description: Klambauer et al. 2017 + Shao et al. (TransMIL) 2021",
    modalities=("omics",),
    reference=Inputs(groups={"families": (100, 200, 300, 400, 500, 600)}),
)
class SNNTrans(SurvivalModel):
    """G gene groups → tokens [B, G, d] → class token in front, pre-norm attention layers → head on the class token, [B, bins].

    Neither the papers nor public code describe it, so all of it is our choice, put together from its two named parts. A layer is
    T ← T + Drop(Attention(LN(T))), without a feed-forward part and without position codes.

    groups: the cohort's grouping. encoder_hidden: widths of each group's SNN blocks, the last is d (CMTA: [1024, 256]).
    init: of these blocks, `torch` or `self_normalising` (N(0, 1/√fan_in)). heads, layers, attention_dropout: of the Transformer.
    attention: `full` (exact) or `nystrom` (TransMIL's layer with 128 landmarks, in which zero-padding takes part in the softmax).
    ppeg: TransMIL to the letter, tokens repeated to a square grid and convolved after the first layer.
    A group of which the cohort has no gene keeps its place and is masked in every attention, which for `nystrom` masks the padding
    too. A patient without omics cannot be predicted.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        groups: str,
        encoder_hidden: Sequence[int],
        dropout: float,
        init: str,
        heads: int,
        layers: int,
        attention: str,
        attention_dropout: float,
        ppeg: bool,
    ) -> None:
        super().__init__()
        self.modalities = self.requires = ("omics",)
        self.grouping = groups
        self.sizes = inputs.grouping(groups, "SNNTrans")
        width = encoder_hidden[-1]
        self.encoders = nn.ModuleList(snn_layers(n, encoder_hidden, dropout) if n else nn.Identity() for n in self.sizes)
        choice("init", init, {"torch": lambda _: None, "self_normalising": init_self_normalising})(self.encoders)
        self.class_token = nn.Parameter(torch.randn(width))
        kind = choice("attention", attention, {"full": SelfAttention, "nystrom": NystromAttention})
        sizes = {"landmarks": LANDMARKS, "padding": "reference"} if kind is NystromAttention else {}
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.layers = nn.ModuleList(kind(width, heads=heads, dropout=attention_dropout, **sizes) for _ in range(layers))
        self.position = PPEG(width) if ppeg else None
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, inputs.bins)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; raises `InputError` for a patient without omics."""
        self.check(patient)
        tokens, mask = self._tokens(patient.groups[self.grouping])
        for at, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            tokens = tokens + layer(norm(tokens), mask)
            if at == 0 and self.position is not None:
                # a token that is masked gathers from the others; on the grid its place stays empty
                tokens = self.position(tokens if mask is None else tokens * mask[..., None])
        return Output(self.head(self.norm(tokens[:, 0])))

    def _tokens(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class token and groups [B, 1 + G, d], and which are there, [B, 1 + G] (None: all)."""
        parts = zip(features.split(self.sizes, dim=1), self.encoders, self.sizes, strict=True)
        first = self.class_token.expand(len(features), -1)
        encoded = torch.stack([encode(x) if n else torch.zeros_like(first) for x, encode, n in parts], dim=1)
        there = torch.tensor([n > 0 for n in self.sizes], device=features.device).expand(len(features), -1)
        if self.position is not None:
            encoded, there = fill_square(encoded), fill_square(there)
        tokens = torch.cat([first[:, None], encoded], dim=1)
        return tokens, None if all(self.sizes) else nn.functional.pad(there, (1, 0), value=True)
