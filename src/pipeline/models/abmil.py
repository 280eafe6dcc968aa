"""ABMIL: gated attention over the patches of a slide, alone or fused late with an omics vector."""

from __future__ import annotations

from torch import nn

from pipeline.cohort.record import Patient
from pipeline.errors import choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.attention import GatedAttentionPool
from pipeline.nn.dropout import Dropout
from pipeline.nn.fusion import BilinearFusion, ConcatFusion
from pipeline.nn.snn import snn_layers

FUSED_WIDTH = 256  # of the omics network and of the fused vector, fixed in MCAT's code


@register(
    paper="Ilse et al., ICML 2018; as in Chen et al. (MCAT), ICCV 2021",
    modalities=("wsi",),
    reference=Inputs(bags={"wsi": 1024}),
    patches=4096,
)
class ABMIL(SurvivalModel):
    """Patches [B, N, d] → h_i = Drop(ReLU(W x_i)) [B, N, L] → gated attention pooling [B, L] → ρ [B, D] → logits [B, bins].

    ρ (`rho`), a further Linear–ReLU–Dropout L→D, and the front layer are MCAT's, not Ilse's; published survival numbers come
    from that form. Every preset of the field is a variant. With `fusion` concat or bilinear (MCAT's late fusion) a two-layer SNN
    of the vector `omics` joins before the head; such a model requires both modalities.

    dropout: after the front layer and ρ; attention_dropout: inside the attention branch (in the codes, not in the paper).
    mask_padding: false gives padding its share of the attention, as SurvPath's code does. init: `default` (PyTorch) or `xavier`
    (normal, bias 0). The bias c of the attention cancels in the softmax and gets no gradient.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        modality: str,
        L: int,  # noqa: N803  (the paper's symbols)
        D: int,  # noqa: N803
        gated: bool,
        rho: bool,
        dropout: float,
        attention_dropout: float,
        init: str,
        mask_padding: bool,
        fusion: str,
        fusion_dropout: float,
    ) -> None:
        super().__init__()
        initialise = choice("init", init, {"default": None, "xavier": _xavier})
        fused = choice("fusion", fusion, {"none": False, "concat": True, "bilinear": True})
        self.modality, self.mask_padding = modality, mask_padding
        self.modalities = self.requires = (modality, "omics") if fused else (modality,)
        self.embed = nn.Sequential(nn.Linear(inputs.bag(modality, "ABMIL"), L), nn.ReLU(inplace=True), Dropout(dropout))
        self.pool = GatedAttentionPool(L, D, attention_dropout, gated=gated)
        self.rho = nn.Sequential(nn.Linear(L, D), nn.ReLU(), Dropout(dropout)) if rho else nn.Identity()
        width = D if rho else L
        self.fusion: nn.Module | None = None
        if fused:
            length = inputs.vector("omics", f"ABMIL with fusion {fusion}")
            self.omics = snn_layers(length, (FUSED_WIDTH, FUSED_WIDTH), fusion_dropout)
            sides = (width, FUSED_WIDTH, FUSED_WIDTH)
            self.fusion = ConcatFusion(*sides) if fusion == "concat" else BilinearFusion(*sides, fusion_dropout)
            width = FUSED_WIDTH
        self.head = nn.Linear(width, inputs.bins)
        if initialise:
            initialise(self)

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins] and attention ``wsi`` [B, N]; raises `InputError` for a patient without what is required."""
        self.check(patient)
        bag = patient.bags[self.modality]
        vector, weights = self.pool(self.embed(bag.features), bag.mask if self.mask_padding else None)
        vector = self.rho(vector)
        if self.fusion is not None:
            vector = self.fusion(vector, self.omics(patient.vectors["omics"]))
        return Output(self.head(vector), attention={self.modality: weights})


def _xavier(model: nn.Module) -> None:
    """Xavier normal weights and zero biases (PORPOISE); the halves of the fused attention projection count as two layers."""
    fused = {module.project for module in model.modules() if isinstance(module, GatedAttentionPool) and module.gated}
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            for half in layer.weight.chunk(2 if layer in fused else 1):
                nn.init.xavier_normal_(half)
            nn.init.zeros_(layer.bias)
