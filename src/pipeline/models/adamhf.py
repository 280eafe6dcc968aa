"""AdaMHF: routed experts in two stages a modality, few tokens kept, cross-attention, and a global beside a low-rank local fusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.dropout import Dropout
from pipeline.nn.experts import Experts
from pipeline.nn.low_rank import LowRankFusion
from pipeline.nn.pathways import GroupedEncoder
from pipeline.nn.position import EPEG, fill_square
from pipeline.nn.routed_experts import FrozenMLP, PatchExpert, ProgressiveExperts, TokenMixture
from pipeline.nn.self_attention import NystromAttention
from pipeline.nn.snn import snn_layers
from pipeline.nn.token_selection import TokenSelection

STAGES = 2  # Transformer block and PREE, twice a unit (eqs 2–3)
CLASS_TOKEN_STD = 1e-6
ALIGNMENTS = {"cross_l1": True, "code": False}


@register(
    paper="Zhang et al., AdaMHF, arXiv 2503.21124, 2025",
    modalities=("wsi", "omics"),
    reference=Inputs(bags={"wsi": 1024}, groups={"families": (89, 334, 534, 471, 1510, 482)}),  # LUAD
    patches=2048,
)
class AdaMHF(SurvivalModel):
    """Patches [B, N, d_in] and G gene groups → logits [B, bins]; Adaptive Multimodal Hierarchical Fusion, one patient at a time.

    Patches by two layers Linear–ReLU–dropout and each gene group by a network of its own (two SNN blocks) → tokens [N, d], [G, d].
    Segregation unit a modality (eqs 2–3): `_Unit`. ATSA (eqs 4, 10–14): `TokenSelection`, K_p and K_g tokens. Cross-attention (eqs 5,
    18–21): `_CrossAttention`. Integration unit a modality, built as the segregation unit, with weights of its own: class token c*, tokens.
    Local (eqs 6, 15): u = low-rank fusion of the means of the tokens. Global (eq. 7): v = MLP [c_g*; c_p*]. Head (eqs 8–9): a linear
    layer on (1−β)v + βu. Loss (eq. 17): λ times the mean of |c_p* − c_g*| is added (`losses["align"]`, 0 for a patient who lacks a
    modality: our choice). The public code cannot run; where it fills the paper's silence config/models/adamhf.yaml says so, and where
    both leave something open it says "our choice".

    bag, groups: the bag and the grouping to read. width: d. branches: both, or only `path` or `omic` (our choice: no cross-attention, and
    fusions of one vector). gene_hidden, patch_expert_hidden, gene_expert_hidden, frozen_hidden: hidden widths. snn_activation: selu, elu.
    heads, landmarks, padding, norm, exact_if_short: of `NystromAttention`. epeg_residual, share_stages (one EPEG and one PREE for
    both stages of a unit). pree: on, standard_moe (`TokenMixture`) or off; pree_layers of 1, 2, 4 experts; expert_norm, mlp_residual,
    all_experts, frozen_init: `nn/routed_experts.py`. atsa, atsa_shared (one for both modalities), preserve, rho, alpha:
    `nn/token_selection.py`; without ATSA all tokens stay. cross_routing: which unit gets which product of the cross-attention. fusion: lmf
    of that rank, or outer, a linear layer on the outer product. use_global, use_local: false leaves v or u out. align: cross_l1, or code
    (CMTA's: each c* to its own c before, detached). cls_source: integration, or mean_of_both ((c + c*)/2, the code).
    missing: what stands for a modality a patient lacks. `zeros`: zeros after preprocessing (missing-modality benchmark), for a slide
    n_fill patches of zeros; `native`: the same, but K = 2 for it (our choice: the paper says its router does so, nothing trains it);
    `refuse`: such a patient is not predicted.

    The order of patches matters (EPEG, convolutions, landmarks). Experts that no patient of a batch was routed to get no gradient.
    Time and memory are linear in N, but follow K, too: at the reference input 13.65 GFLOP with ρ = .05, more or less where the router
    takes another share (an untrained one about .03 to .09).
    """

    ordered = True

    def __init__(
        self,
        inputs: Inputs,
        *,
        bag: str,
        groups: str,
        branches: str,
        width: int,
        gene_hidden: int,
        dropout: float,
        snn_activation: str,
        heads: int,
        landmarks: int,
        attention_dropout: float,
        padding: str,
        norm: str,
        exact_if_short: bool,
        epeg_residual: bool,
        share_stages: bool,
        pree: str,
        pree_layers: int,
        patch_expert_hidden: int,
        gene_expert_hidden: int,
        expert_norm: str,
        mlp_residual: bool,
        all_experts: bool,
        frozen_hidden: int,
        frozen_init: str,
        atsa: bool,
        atsa_shared: bool,
        preserve: bool,
        rho: float | None,
        alpha: float | None,
        cross_routing: str,
        fusion: str,
        rank: int,
        use_global: bool,
        use_local: bool,
        beta: float,
        align: str,
        align_weight: float,
        cls_source: str,
        missing: str,
        n_fill: int,
    ) -> None:
        super().__init__()
        sides = choice("branches", branches, {"both": ("path", "omic"), "path": ("path",), "omic": ("omic",)})
        self.names = {side: {"path": bag, "omic": "omics"}[side] for side in sides}
        self.modalities = tuple(self.names.values())
        self.requires = choice("missing", missing, {"zeros": (), "native": (), "refuse": self.modalities})
        self.native, self.n_fill, self.grouping = missing == "native", n_fill, groups
        self.by_content = choice("cross_routing", cross_routing, {"position": False, "content": True})
        self.beta, self.align_weight, self.cross_l1 = beta, align_weight, choice("align", align, ALIGNMENTS)
        self.mean_class = choice("cls_source", cls_source, {"integration": False, "mean_of_both": True})
        if "path" in sides:
            self.patch_width = inputs.bag(bag, "AdaMHF")
            layers = [[nn.Linear(n, width), nn.ReLU(), Dropout(dropout)] for n in (self.patch_width, width)]
            self.patches = nn.Sequential(*layers[0], *layers[1])
        if "omic" in sides:
            self.sizes = inputs.grouping(groups, "AdaMHF")
            self.genes = GroupedEncoder(self.sizes, width, dropout, hidden=gene_hidden, activation=snn_activation)

        progressive = partial(ProgressiveExperts, width, [2**layer for layer in range(pree_layers)])
        progressive = partial(progressive, mlp_residual=mlp_residual, all_experts=all_experts)
        kinds = {
            "path": partial(PatchExpert, width, patch_expert_hidden, expert_norm),
            "omic": partial(snn_layers, width, (gene_expert_hidden, width), dropout, snn_activation),
        }
        attention = partial(NystromAttention, width, heads=heads, dropout=attention_dropout, landmarks=landmarks)
        attention = partial(attention, padding=padding, norm=norm, exact_if_short=exact_if_short)

        def unit(side: str) -> _Unit:
            experts = choice(
                "pree", pree, {"on": partial(progressive, kinds[side]), "standard_moe": partial(TokenMixture, width), "off": None}
            )
            position = partial(EPEG, width, residual=epeg_residual) if side == "path" else None
            return _Unit(width, attention, position, experts, share_stages)

        self.frozen = FrozenMLP(width, frozen_hidden, frozen_init)
        self.segregation = nn.ModuleDict({side: unit(side) for side in sides})
        self.integration = nn.ModuleDict({side: unit(side) for side in sides})
        select = partial(TokenSelection, width, dropout, preserve=preserve, rho=rho, alpha=alpha)
        self.selection = nn.ModuleDict({key: select() for key in (["shared"] if atsa_shared else sides)} if atsa else {})
        self.cross = _CrossAttention(width) if len(sides) == 2 else None
        build = choice("fusion", fusion, {"lmf": partial(LowRankFusion, rank=rank, weighted=True), "outer": _OuterFusion})
        self.local_fusion = build([width] * len(sides), width) if use_local else None
        two = nn.Linear(len(sides) * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        self.global_fusion = nn.Sequential(*two) if use_global else None
        if not (use_global or use_local):
            problem = "AdaMHF has nothing to predict from"
            raise InputError(problem, found="use_global: false, use_local: false", expected="one of them true")
        self.head = nn.Linear(width, inputs.bins)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-normal weights and zero biases of every linear layer that is trained (code); the frozen MLP is none of them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (GroupedEncoder, Experts)):  # stacked layers, each with fans of its own
                sizes = module.sizes if isinstance(module, GroupedEncoder) else ()
                with torch.no_grad():
                    matrices = [module.weight_in[module.rows(g)] for g in range(len(sizes))] or module.weight_in
                    for matrix in [*matrices, *module.weight_out]:
                        nn.init.xavier_normal_(matrix)
                nn.init.zeros_(module.bias_in)
                nn.init.zeros_(module.bias_out)
        for selection in self.selection.values():
            selection.start()

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins] and attention ``<modality>`` [B, N], the scores s of its tokens (eq. 11), if there is ATSA.

        With `explain` also attention ``cross_<bag>`` [B, K_p, K_g] and ``cross_omics`` [B, K_g, K_p] (eq. 20, each over what is summed) and
        details a modality: ``roles_`` [B, N] (2 kept as it is, 1 of the K best but pooled, 0 pooled), ``rho_``, ``alpha_`` [B], and
        ``experts_`` [B, 2 units, 2 stages, layers], the expert chosen. Raises `InputError` for a patient who cannot be predicted.
        """
        self.check(patient)
        genes = None
        if "omic" in self.names:
            genes = self.genes(patient.groups_or_zeros(self.grouping, sum(self.sizes)))  # [B, G, d]
        rows = range(patient.size)
        return Output.joined([self._one(patient.single(row), None if genes is None else genes[row]) for row in rows])

    def _one(self, patient: Patient, genes: Tensor | None) -> Output:
        """The output of one patient, B = 1; genes [G, d]."""
        tokens = {"path": self._path, "omic": lambda _: genes}
        lacking = {side for side, name in self.names.items() if not patient.has(name).all()}
        attention: dict[str, Tensor] = {}
        details: dict[str, Tensor] = {}
        first = {side: unit(tokens[side](patient), self.frozen) for side, unit in self.segregation.items()}
        selected = {side: self._select(side, state, side in lacking, attention, details) for side, state in first.items()}
        crossed = self._exchange(selected, attention)
        second = {side: unit(crossed[side], self.frozen) for side, unit in self.integration.items()}
        if self.explain:
            for side, name in self.names.items():
                if first[side].chosen[0]:
                    chosen = torch.tensor([first[side].chosen, second[side].chosen])
                    details[f"experts_{name}"] = chosen[None].to(second[side].cls.device)
        classes = {side: (first[side].cls + state.cls) / 2 if self.mean_class else state.cls for side, state in second.items()}
        fused = self._fuse(classes, {side: state.tokens.mean(dim=0) for side, state in second.items()})
        losses = {}
        if self.training and (self.cross is not None or not self.cross_l1):
            losses["align"] = self.align_weight * (0.0 if lacking else 1.0) * self._alignment(first, second)
        return Output(self.head(fused), losses, attention=attention, details=details)

    def _path(self, patient: Patient) -> Tensor:
        """Patch tokens [N, d] of one patient."""
        bag = self.names["path"]
        features = patient.bags[bag].features[0] if bag in patient.bags else self.head.weight.new_zeros(self.n_fill, self.patch_width)
        return self.patches(features)

    def _select(self, side: str, state: _Encoded, lacking: bool, attention: dict[str, Tensor], details: dict[str, Tensor]) -> Tensor:
        """The tokens that go on, [K, d] (eqs 10–14)."""
        if not self.selection:
            return state.tokens
        module = self.selection["shared" if "shared" in self.selection else side]
        selected = module(state.tokens, state.cls, count=2 if lacking and self.native else None)
        name = self.names[side]
        attention[name] = selected.scores[None]
        if self.explain:
            found = {"roles": selected.roles, "rho": selected.rho, "alpha": selected.alpha}
            details.update({f"{key}_{name}": value[None] for key, value in found.items()})
        return selected.tokens

    def _exchange(self, tokens: dict[str, Tensor], attention: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each integration unit reads (eqs 18–21)."""
        if self.cross is None:
            return tokens
        at_patches, at_genes, over_genes, over_patches = self.cross(tokens["path"], tokens["omic"])
        if self.explain:
            attention[f"cross_{self.names['path']}"], attention["cross_omics"] = over_genes[None], over_patches[None]
        return {"path": at_genes, "omic": at_patches} if self.by_content else {"path": at_patches, "omic": at_genes}

    def _fuse(self, classes: dict[str, Tensor], means: dict[str, Tensor]) -> Tensor:
        """(1−β)v + βu (eqs 6–8), [1, d]."""
        local = None if self.local_fusion is None else self.local_fusion([mean[None] for mean in means.values()])
        if self.global_fusion is None:
            return local
        whole = self.global_fusion(torch.cat([classes[side] for side in sorted(classes)])[None])  # genes first, as in eq. 7
        return whole if local is None else (1 - self.beta) * whole + self.beta * local

    def _alignment(self, first: dict[str, _Encoded], second: dict[str, _Encoded]) -> Tensor:
        """Mean absolute difference of the class tokens (appendix F), or the code's."""
        if self.cross_l1:
            return F.l1_loss(second["path"].cls, second["omic"].cls)
        return torch.stack([F.l1_loss(second[side].cls, first[side].cls.detach()) for side in second]).sum()


class _Encoded(NamedTuple):
    """cls [d], tokens [N, d]; chosen: the preferred experts, a list a stage."""

    cls: Tensor
    tokens: Tensor
    chosen: list[list[int]]


class _Unit(nn.Module):
    """A segregation or integration unit (eqs 2–3), tokens [N, d] → `_Encoded`: twice a Transformer block, EPEG (patches only), PREE.

    A learned class token goes first. Patches are filled up to a square with the first of them; the copies are dropped at the end (our
    choice). `position` and `experts` make the EPEG and the PREE, None: there is none; `shared`: the two stages have them in common.
    """

    def __init__(self, width: int, attention: partial, position: partial | None, experts: partial | None, shared: bool) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(width) * CLASS_TOKEN_STD)
        self.transformers = nn.ModuleList(_Transformer(width, attention()) for _ in range(STAGES))
        stages = 1 if shared else STAGES
        self.positions = nn.ModuleList(position() for _ in range(stages if position else 0))
        self.experts = nn.ModuleList(experts() for _ in range(stages if experts else 0))

    def forward(self, tokens: Tensor, frozen: FrozenMLP) -> _Encoded:
        count, allocation = len(tokens), []
        x = fill_square(tokens[None]) if self.positions else tokens[None]
        x = torch.cat([self.cls.to(x.dtype).expand(1, 1, -1), x], dim=1)  # [1, 1 + S², d]
        for stage, transformer in enumerate(self.transformers):
            chosen: list[int] = []
            x = transformer(x)
            if self.positions:
                x = self.positions[stage % len(self.positions)](x)
            if self.experts:
                refined, chosen = self.experts[stage % len(self.experts)](x[0], frozen)
                x = refined[None]
            allocation.append(chosen)
        cls, kept, _ = x[0].split([1, count, x.shape[1] - 1 - count])
        return _Encoded(cls[0], kept, allocation)


class _Transformer(nn.Module):
    """x + attention(LayerNorm x), [1, T, d]; no feed-forward part (code, as CMTA)."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class _CrossAttention(nn.Module):
    """Eqs 18–21, one score matrix read in both directions: X = (x_p W_p¹)(x_g W_g¹)ᵀ/√d [K_p, K_g]; no bias, residual or dropout.

    Softmax over the patches: (Pᵀ x_p) W_p² [K_g, d], patch content at the genes (the paper's x_p*). Softmax over the genes: (G x_g) W_g²
    [K_p, d], gene content at the patches (x_g*). 1/√d is the code's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score_path, self.score_omic, self.value_path, self.value_omic = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, path: Tensor, omic: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [K_p, d] at the patches, [K_g, d] at the genes, and the weights over genes [K_p, K_g] and over patches [K_g, K_p]."""
        scores = self.score_path(path) @ self.score_omic(omic).T * path.shape[1] ** -0.5
        over_genes, over_patches = scores.softmax(dim=1), scores.T.softmax(dim=1)
        return self.value_omic(over_genes @ omic), self.value_path(over_patches @ path), over_genes, over_patches


class _OuterFusion(nn.Module):
    """A linear layer on the outer product of all [x_m; 1] (Table IV, "w/o LMF"): vectors [B, w_m] → [B, width_out]."""

    def __init__(self, widths: Sequence[int], width_out: int) -> None:
        super().__init__()
        self.project = nn.Linear(math.prod(width + 1 for width in widths), width_out)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        product = F.pad(vectors[0], (0, 1), value=1.0)
        for vector in vectors[1:]:
            product = (product[:, :, None] * F.pad(vector, (0, 1), value=1.0)[:, None]).flatten(1)
        return self.project(product)
