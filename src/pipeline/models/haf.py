"""HAF: any number of modalities, encoded, aligned and fused in three stages that do not pass gradients to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cohort.record import Bag, Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel, Target
from pipeline.models.registry import register
from pipeline.nn.alignment import contrast, discriminability, singular_emphasis, spectrum, unit
from pipeline.nn.clam import ClamEncoder, Encoded, clustering_loss
from pipeline.nn.dropout import Dropout

TABLES = {"clinical": 7, "pathological": 37, "blood": 16, "icd": 40, "cell_density": 4}  # HANCOCK, one-hot


@register(
    paper="Zheng et al., under review at MIDL 2026",
    modalities=("any",),
    reference=Inputs(bags={"wsi": 1024, "tma": 1024}, vectors=TABLES, bins=1),
    patches={"wsi": 4096, "tma": 16},
)
class HAF(SurvivalModel):
    """Bags [B, N_m, d_m] and tables [B, d_m], any subset a patient → logits [B, bins]; Heterogeneous Aligned Fusion.

    Stage 1, a bag: z = (H w_l)ᵀ a [B, 64] with gated attention a (eqs 1–2, `ClamEncoder`), trained by its own bag and instance heads:
    L_img = CE + L_inst (eq. 3). A table is z itself. Stage 2: u = φ(z) [B, 128], φ = Linear–ReLU–Linear (eq. 4), aligned by
    L_GA = L_SV + λ_PD L_PD on u/‖u‖ (eqs 5–7). Stage 3: s = MLP(concat of u, zeros for what the patient lacks) (eqs 8–9); a second
    prediction from a random subset of his modalities, drawn anew each step, gives
    L_fusion = ℓ(ŷ⁺) + ℓ(ŷ⁻) + λ_MoFe max(ℓ(ŷ⁺) − ℓ(ŷ⁻), 0) (eqs 10–11). All is minimised together (eq. 12).

    The paper predicts a binary label: bins = 1, ŷ = σ(s), a bag head of two classes (its logit is their difference, so that their
    cross-entropy is the study's likelihood) and instance heads of two classes. With K > 1 time bins (our choice) every head has K
    logits under the study's likelihood, and the instance heads one class a bin, taught only by patients whose bin is certain: those
    with the event. A Cox loss compares the patients of a step: the monotonicity then that of the step, the bag's loss one over all
    of it, in which those without the bag share one risk; the censored count as `no event` in the instance heads alone.

    modalities: what is read, in this order; null = all that the cohort offers, bags first. complete_only: predict only patients who
    have all of it. fusion: `mlp`, or `none` = CLAM: one encoder over the bags side by side, whose bag head predicts (the paper's
    pathology-only rows). use_phi: false = the MLP reads z and raw tables (our reading of a plain concatenation).
    d1, d2, d_out, phi_hidden, fusion_hidden: widths; activation, encoder_dropout: of the encoder; dropout: in φ and the MLP.
    instance_samples: K of L_inst; instance_weight: of L_inst beside the bag's cross-entropy.
    align: `ga`, `clip` (each modality contrasted with an anchor, the first of `clip_anchors` that is read, else the first modality) or
    `none`. normalize: eqs 5–6 on unit vectors. tau_sv, tau_pd, tau_clip, lambda_pd, lambda_mofe: as in the equations. lambda_align: of
    the alignment as a whole, 1 in eq. 12.
    random_drop: false removes ŷ⁻ and the monotonicity; p_train: with which probability a modality is left out (one is always kept).
    mofe_detach_minus: the monotonicity does not raise ℓ(ŷ⁻). detach_stage1, detach_stage2: gradients stop at z of the bags and,
    where there is an alignment, at u; without one φ belongs to stage 3 and would otherwise never learn (our reading of Table 2).
    schedule: `joint` (eq. 12) or `sequential` (Sec. 3.4): stage after stage, each frozen afterwards, without dropout.
    The biases that cancel in the softmax of the attention get no gradient.
    """

    whole_step = True  # the alignment, the contrast and the means over who has a bag are of all patients of a step

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str] | None,
        complete_only: bool,
        fusion: str,
        use_phi: bool,
        d1: int,
        d2: int,
        activation: str,
        encoder_dropout: float,
        instance_samples: int,
        instance_weight: float,
        d_out: int,
        phi_hidden: int,
        fusion_hidden: int,
        dropout: float,
        align: str,
        normalize: bool,
        tau_sv: float,
        tau_pd: float,
        lambda_pd: float,
        tau_clip: float,
        lambda_align: float,
        clip_anchors: Sequence[str],
        random_drop: bool,
        p_train: float,
        lambda_mofe: float,
        mofe_detach_minus: bool,
        detach_stage1: bool,
        detach_stage2: bool,
        schedule: str,
    ) -> None:
        super().__init__()
        fused = choice("fusion", fusion, {"mlp": True, "none": False})
        self.align = choice("align", align, {"ga": "ga", "clip": "clip", "none": None})
        if self.align and not (fused and use_phi):
            problem = "HAF aligns the outputs of phi, which this model does not have"
            raise InputError(problem, found=f"align: {align}", expected="align: none")
        self.widths = _widths(inputs, modalities, bags_only=not fused)
        self.modalities = tuple(self.widths)
        self.requires = self.modalities if complete_only else ()
        self.bags = [m for m in self.modalities if m in inputs.bags]
        self.bins, self.detach_stage1, self.detach_stage2 = inputs.bins, detach_stage1, detach_stage2
        self.instance_samples, self.instance_weight = instance_samples, instance_weight
        self.normalize, self.tau_sv, self.tau_pd, self.lambda_pd, self.tau_clip = normalize, tau_sv, tau_pd, lambda_pd, tau_clip
        self.lambda_align = lambda_align
        self.anchor = next((m for m in clip_anchors if m in self.modalities), self.modalities[0])
        self.p_train = p_train if random_drop and fused else None
        self.lambda_mofe, self.mofe_detach_minus = lambda_mofe, mofe_detach_minus

        classes = 2 if self.bins == 1 else self.bins
        encoder = {"outputs": classes, "classes": classes, "activation": activation, "dropout": encoder_dropout}
        read = {m: self.widths[m] for m in self.bags} if fused else {"+".join(self.bags): self.widths[self.bags[0]]}
        self.encoders = nn.ModuleDict({m: ClamEncoder(width, d1, d2, **encoder) for m, width in read.items()})
        z = {m: d1 if m in self.bags else width for m, width in self.widths.items()}
        self.phi = nn.ModuleDict({m: _mlp(width, phi_hidden, d_out, dropout) for m, width in z.items()} if fused and use_phi else {})
        joined = len(z) * d_out if use_phi else sum(z.values())
        self.fusion = _mlp(joined, fusion_hidden, self.bins, dropout) if fused else None
        self.stages = choice("schedule", schedule, {"joint": ("all",), "sequential": self._sequence()})
        self.stage, self.frozen = "all", []
        if len(self.stages) > 1 and not (detach_stage1 and detach_stage2):
            problem, remedy = "HAF trained stage after stage freezes what an end-to-end gradient would change", "Set schedule: joint."
            raise InputError(problem, found="schedule: sequential", expected="both stages detached", remedy=remedy)

    # --- prediction ---

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]; attention [B, N_m] of each bag by its name, of bags side by side by their names joined by +.

        With `explain`, details ``aligned`` [B, M, d_out] (u in the order of `modalities`, zeros where absent), ``singular_values``
        [B, M] of u/‖u‖, and the unimodal logits ``<bag>_logits`` [B, bins]. Raises `InputError` for a patient with nothing to read.
        """
        self.check(patient)
        bags = self._read(patient)
        encoded = {name: self.encoders[name](bag.features, bag.mask) for name, bag in bags.items()}
        attention = {name: e.weights for name, e in encoded.items()}
        auxiliary = self._unimodal(bags, encoded) if self._active("encoders") else {}
        if self.fusion is None:
            ((name, bag),) = encoded.items()
            return Output(self._bag_logits(name, bag), auxiliary=auxiliary, attention=attention)

        observed = torch.stack([patient.has(m) for m in self.modalities], dim=1)  # [B, M]
        blocks = self._blocks(patient, encoded)
        losses, details = {}, self._explained(blocks, observed, encoded) if self.explain else {}
        if self.align:
            losses = self._alignment(_aligned(blocks, observed), observed) if self._active("alignment") else {}
            blocks = [block.detach() for block in blocks] if self.detach_stage2 else blocks
        if self.p_train is not None and self._active("fusion"):
            auxiliary["reduced"] = self._fuse(blocks, random_subset(observed, self.p_train))
        return Output(self._fuse(blocks, observed), losses, auxiliary, attention, details)

    def _read(self, patient: Patient) -> dict[str, Bag]:
        """The bags by the name of the encoder that reads them."""
        stored = {m: patient.bag_or_zeros(m, self.widths[m]) for m in self.bags}
        bags = {m: Bag(bag.features, bag.mask & patient.has(m)[:, None]) for m, bag in stored.items()}
        if self.fusion is not None:
            return bags
        sides = list(bags.values())
        return {"+".join(bags): Bag(torch.cat([b.features for b in sides], dim=1), torch.cat([b.mask for b in sides], dim=1))}

    def _blocks(self, patient: Patient, encoded: Mapping[str, Encoded]) -> list[Tensor]:
        """What the fusion reads of each modality: u [B, d_out] (eq. 4), or z itself without φ; of no meaning where it is absent."""
        blocks = []
        for name, width in self.widths.items():
            if name in encoded:
                z = encoded[name].vector.detach() if self.detach_stage1 else encoded[name].vector
            else:
                z = patient.vectors[name] if name in patient.vectors else torch.zeros(patient.size, width, device=_device(patient))
            blocks.append(self.phi[name](z) if self.phi else z)
        return blocks

    def _fuse(self, blocks: Sequence[Tensor], keep: Tensor) -> Tensor:
        """Logits [B, bins] of the modalities that `keep` [B, M] leaves (eqs 8–9)."""
        return self.fusion(torch.cat([torch.where(keep[:, m, None], block, 0.0) for m, block in enumerate(blocks)], dim=1))

    def _bag_logits(self, name: str, encoded: Encoded) -> Tensor:
        """The unimodal prediction [B, bins]; of two classes the difference, whose cross-entropy is theirs."""
        logits = self.encoders[name].head(encoded.vector)
        return logits[:, 1:] - logits[:, :1] if self.bins == 1 else logits

    # --- losses ---

    def supervised(self, output: Output, target: Target) -> dict[str, Tensor]:
        """``<bag>_bag`` and ``<bag>_instances`` (eq. 3, means over the patients who have it), ``reduced``, ``monotonicity`` (eqs 10–11)."""
        given, losses = output.auxiliary, {}
        label, certain = (target.event.long(), torch.ones_like(target.event)) if self.bins == 1 else (target.y, target.event)
        for name in self.encoders:
            if f"{name}_instances" not in given:
                continue
            has = given[f"{name}_has"]
            if self.fusion is not None:  # else the trainer's likelihood is that of the bag head
                losses[f"{name}_bag"] = _mean(target.loss(given[f"{name}_bag"]), has)
            clustering = clustering_loss(given[f"{name}_instances"], given[f"{name}_counted"], label)
            losses[f"{name}_instances"] = self.instance_weight * _mean(clustering * certain, has)
        if "reduced" in given:
            full, reduced = target.loss(output.logits), target.loss(given["reduced"])
            losses["reduced"] = reduced.mean()
            bound = reduced.detach() if self.mofe_detach_minus else reduced
            losses["monotonicity"] = self.lambda_mofe * (full - bound).clamp(min=0).mean()
        return losses

    def _unimodal(self, bags: Mapping[str, Bag], encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """What eq. 3 needs of each encoder, by name: predictions of the bag and of its instances, and who has it."""
        found = {}
        for name, bag in bags.items():
            found[f"{name}_bag"] = self._bag_logits(name, encoded[name])
            logits, counted = self.encoders[name].extremes(encoded[name], bag.mask, self.instance_samples)
            found |= {f"{name}_instances": logits, f"{name}_counted": counted, f"{name}_has": bag.mask.any(dim=1)}
        return found

    def _alignment(self, aligned: Tensor, observed: Tensor) -> dict[str, Tensor]:
        """L_GA (eq. 7) in its two parts, or L_CLIP; aligned [B, M, d_out], observed [B, M]."""
        if self.align == "clip":
            return {"contrast": self.lambda_align * self._contrast(aligned, observed)}
        found = spectrum(unit(aligned) if self.normalize else aligned)
        return {
            "singular_emphasis": self.lambda_align * singular_emphasis(found.values, observed.sum(dim=1), self.tau_sv),
            "discriminability": self.lambda_align * self.lambda_pd * discriminability(found.direction, self.tau_pd),
        }

    def _contrast(self, aligned: Tensor, observed: Tensor) -> Tensor:
        """L_CLIP: the anchor against each other modality over the patients who have both; the mean of the pairs that two or more have."""
        units, anchor, pairs = unit(aligned), self.modalities.index(self.anchor), []
        for other in range(len(self.modalities)):
            both = observed[:, anchor] & observed[:, other]
            if other != anchor and int(both.sum()) > 1:
                pairs.append(contrast(units[both, anchor], units[both, other], self.tau_clip))
        return torch.stack(pairs).mean() if pairs else aligned.sum() * 0

    # --- stages of `schedule: sequential` ---

    def enter(self, stage: str) -> None:
        """Train only what belongs to `stage`, one of `stages`; the rest is frozen."""
        self.stage = choice("stage", stage, dict.fromkeys(self.stages, stage))
        last = "alignment" if "alignment" in self.stages else "fusion"  # without an alignment φ belongs to the fusion
        parts = [(self.encoders, "encoders"), (self.phi, last), (self.fusion, "fusion")]
        self.frozen = [part for part, owner in parts if part is not None and stage not in ("all", owner)]
        self.requires_grad_(True)
        for part in self.frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> HAF:
        """As of any module, but what is frozen gives in training what it gives in prediction, so that the next stage fits that."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def watched(self, output: Output, target: Target) -> Tensor:
        """The sum of the losses of a stage that is not the last; of the last the likelihood decides."""
        return torch.stack([*output.losses.values(), *self.supervised(output, target).values()]).sum()

    def _sequence(self) -> tuple[str, ...]:
        if self.fusion is None:
            return ("all",)
        return (*(["encoders"] if self.bags else []), *(["alignment"] if self.align else []), "fusion")

    def _active(self, stage: str) -> bool:
        """Whether the losses of `stage` are to be computed now: in training, and where they decide about stopping."""
        return self.stage in ("all", stage) and (self.training or self.stage in self.stages[:-1])

    # --- the rest ---

    def _explained(self, blocks: Sequence[Tensor], observed: Tensor, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        found = {f"{name}_logits": self._bag_logits(name, e) for name, e in encoded.items()}
        if self.phi:
            found["aligned"] = _aligned(blocks, observed)
            found["singular_values"] = spectrum(unit(found["aligned"])).values
        return found


def random_subset(observed: Tensor, p: float) -> Tensor:
    """Each of a patient's modalities left out with probability `p`, never all: observed [B, M] bool → [B, M] bool.

    Where chance leaves none, one of them is kept, each with the same probability (our choice; the paper says `a subset`).
    """
    luck = torch.rand(observed.shape).to(observed.device)  # drawn on the CPU: the same on every device
    kept = observed & (luck >= p)
    luckiest = functional.one_hot(luck.masked_fill(~observed, -1.0).argmax(dim=1), observed.shape[1]).bool()
    return kept | (luckiest & observed & ~kept.any(dim=1, keepdim=True))


def _widths(inputs: Inputs, modalities: Sequence[str] | None, *, bags_only: bool) -> dict[str, int]:
    """Feature width by modality, in the order of reading. Raises `InputError` for what the cohort does not offer or CLAM cannot read."""
    offered = dict(sorted(inputs.bags.items())) | ({} if bags_only else dict(sorted(inputs.vectors.items())))
    chosen = list(offered) if modalities is None else list(modalities)
    unknown = [m for m in chosen if m not in offered]
    if unknown or not chosen:
        kind = "bags" if bags_only else "modalities"
        remedy = f"List some of its {kind} under options.haf.modalities, or choose another model."
        problem = f"HAF reads {', '.join(unknown)}, which the cohort does not offer" if unknown else f"HAF finds no {kind} to read"
        raise InputError(problem, found=", ".join(offered) or "none", expected=f"{kind} of the cohort", remedy=remedy)
    widths = {m: offered[m] for m in chosen}
    if bags_only and len(set(widths.values())) > 1:
        found = ", ".join(f"{m} {width}" for m, width in widths.items())
        raise InputError("CLAM reads several bags as one only if their features have one width", found=found, expected="one encoder")
    return widths


def _aligned(blocks: Sequence[Tensor], observed: Tensor) -> Tensor:
    """u of all modalities [B, M, d_out], zeros where observed [B, M] is False."""
    return torch.where(observed[..., None], torch.stack(list(blocks), dim=1), 0.0)


def _mlp(width: int, hidden: int, width_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, width_out))


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of values [B] over rows [B] bool; 0 without any."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


def _device(patient: Patient) -> torch.device:
    return next(iter(patient.present.values())).device
