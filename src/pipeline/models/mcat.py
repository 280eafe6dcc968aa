"""MCAT: gene-family tokens look at the patches of a slide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.attention import CrossAttention, GatedAttentionPool
from pipeline.nn.dropout import Dropout
from pipeline.nn.fusion import BilinearFusion, ConcatFusion
from pipeline.nn.pathways import GroupedEncoder

WIDTH = 256


@register(
    paper="Chen et al., ICCV 2021",
    modalities=("wsi", "omics"),
    reference=Inputs(bags={"wsi": 1024}, groups={"families": (100, 200, 300, 400, 500, 600)}),
    patches=4096,
)
class MCAT(SurvivalModel):
    """Patches [B, N, d] and G gene groups → logits [B, bins]; Multimodal Co-Attention Transformer.

    H = Drop(ReLU(W x)) [B, N, 256]; a gene token a group by two SNN blocks [B, G, 256]; co-attention with the gene tokens as
    queries and H as keys and values [B, G, 256]; then a Transformer encoder, gated pooling and ρ on each of the two sets of
    tokens give h_p and h_o [B, 256], which are fused. The paper's equation for the co-attention has neither biases nor an
    output projection, the public code has both and rules. Its ``big`` sizes cannot run and are not offered.

    groups: the cohort's grouping to use. coattn_heads, encoder_layers: 1 and 2 in the paper. fusion: concat or bilinear.
    branches: both, or only `path` or `omic` (head on h_p or h_o alone, our choice). folded: co-attention re-associated so that no
    key or value is formed (same function, a third fewer operations).
    missing: what stands for a modality a patient lacks (MCAT defines none). `zeros`: zeros after preprocessing, the protocol of the
    missing-modality benchmark; an absent slide is one zero patch, since all patches are equal and their number cannot matter.
    `learned` (our choice): learned queries for the path branch and a learned h_o without omics, a learned h_p without slides; train
    it with modality dropout. `refuse`: such a patient is not predicted.
    The key biases of all attentions and the last biases of the two pools cancel in a softmax and get no gradient.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        groups: str,
        dropout: float,
        coattn_heads: int,
        encoder_layers: int,
        encoder_heads: int,
        encoder_hidden: int,
        fusion: str,
        branches: str,
        folded: bool,
        missing: str,
    ) -> None:
        super().__init__()
        self.grouping, self.missing = groups, missing
        self.path, self.omic = choice("branches", branches, {"both": (True, True), "path": (True, False), "omic": (False, True)})
        self.modalities = ("wsi", "omics") if self.path else ("omics",)
        self.requires = choice("missing", missing, {"zeros": (), "learned": (), "refuse": self.modalities})
        self.sizes = inputs.grouping(groups, "MCAT")
        self.genes = GroupedEncoder(self.sizes, WIDTH, dropout)
        branch = {"dropout": dropout, "layers": encoder_layers, "heads": encoder_heads, "hidden": encoder_hidden}
        if self.path:
            self.patch_width = inputs.bag("wsi", "MCAT")
            self.patches = nn.Sequential(nn.Linear(self.patch_width, WIDTH), nn.ReLU(inplace=True), Dropout(dropout))
            self.coattention = CrossAttention(WIDTH, heads=coattn_heads, bias=True, output=True, folded=folded)
            _init_like_multihead(self.coattention)
            self.path_branch = _Branch(**branch)
        if self.omic:
            self.omic_branch = _Branch(**branch)
        build = choice("fusion", fusion, {"concat": self._concat, "bilinear": self._bilinear})
        self.fusion = build(dropout) if self.path and self.omic else None
        self.head = nn.Linear(WIDTH, inputs.bins)
        if missing == "learned":
            self.absent_genes = nn.Parameter(torch.randn(len(self.sizes), WIDTH)) if self.path else None
            self.absent_omic = nn.Parameter(torch.zeros(WIDTH)) if self.omic else None
            self.absent_path = nn.Parameter(torch.zeros(WIDTH)) if self.path else None

    @staticmethod
    def _concat(dropout: float) -> nn.Module:
        return ConcatFusion(WIDTH, WIDTH, WIDTH)

    @staticmethod
    def _bilinear(dropout: float) -> nn.Module:
        return BilinearFusion(WIDTH, WIDTH, WIDTH, dropout)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; attention ``coattention`` [B, G, N] (rows sum to 1) and ``coattention_scores``, before the softmax.

        Scores of padding are −inf. Raises `InputError` for a patient with neither modality, or without one under `refuse`.
        """
        self.check(patient)
        attention: dict[str, Tensor] = {}
        tokens = self.genes(patient.groups_or_zeros(self.grouping, sum(self.sizes)))
        vectors = []
        if self.path:
            h_p = self._path(patient, tokens, attention)
            vectors.append(self._or_learned(h_p, "absent_path", patient.has("wsi")))
        if self.omic:
            vectors.append(self._or_learned(self.omic_branch(tokens), "absent_omic", patient.has("omics")))
        fused = vectors[0] if self.fusion is None else self.fusion(*vectors)
        return Output(self.head(fused), attention=attention)

    def _path(self, patient: Patient, tokens: Tensor, attention: dict[str, Tensor]) -> Tensor:
        """h_p [B, 256]; adds the co-attention maps to `attention`."""
        bag = patient.bag_or_zeros("wsi", self.patch_width)
        mask = bag.mask.clone()
        mask[:, 0] |= ~patient.has("wsi")  # a patient without slides is fed one zero patch
        queries = self._or_learned(tokens, "absent_genes", patient.has("omics"))
        attended, weights, scores = self.coattention(queries, self.patches(bag.features), mask)
        attention["coattention"] = weights.mean(dim=1)
        attention["coattention_scores"] = scores.mean(dim=1).masked_fill(~mask[:, None], -torch.inf)
        return self.path_branch(attended)

    def _or_learned(self, value: Tensor, learned: str, has: Tensor) -> Tensor:
        """`value` [B, …] where the patient has the modality, else the learned vector of that name (`missing: learned`)."""
        if self.missing != "learned":
            return value
        return torch.where(has.view(-1, *[1] * (value.dim() - 1)), value, getattr(self, learned).to(value.dtype))


class _Branch(nn.Module):
    """Tokens [B, G, 256] → Transformer encoder (post-norm, ReLU) → gated pooling → ρ → [B, 256]."""

    def __init__(self, *, dropout: float, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        # Sequence-first layout: PyTorch then never takes its fused inference kernel, whose results differ from those of training
        # in the last digits and whose operations no counter sees. The tokens are six.
        layer = nn.TransformerEncoderLayer(WIDTH, heads, hidden, dropout, batch_first=False)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pool = GatedAttentionPool(WIDTH, WIDTH, dropout)
        self.rho = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        pooled, _ = self.pool(self.encoder(tokens.transpose(0, 1)).transpose(0, 1))
        return self.rho(pooled)


def _init_like_multihead(attention: CrossAttention) -> None:
    """The initial values of ``nn.MultiheadAttention``: Xavier-uniform over the stacked query, key and value weights, biases 0."""
    bound = (6 / (4 * WIDTH)) ** 0.5
    for layer in (attention.query, attention.key, attention.value):
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(attention.output.bias)
