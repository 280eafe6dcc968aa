"""HDMoE: two levels of shared and routed experts, between and behind them a random reorganisation of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pipeline.cohort.record import Patient
from pipeline.errors import InputError, choice
from pipeline.models.interface import Inputs, Output, SurvivalModel
from pipeline.models.registry import register
from pipeline.nn.dropout import Dropout, alpha_dropout
from pipeline.nn.experts import Experts, Mixed, Mixture
from pipeline.nn.position import PPEG, fill_square
from pipeline.nn.self_attention import NystromAttention

EPSILON = 1e-6  # keeps 1/D finite where two vectors are equal (our choice)


@register(
    paper="Wang et al., KDD 2026",
    modalities=("omics", "wsi"),
    reference=Inputs(bags={"wsi": 1024}, groups={"families": (100, 200, 300, 400, 500, 600)}),
    patches=4096,
)
class HDMoE(SurvivalModel):
    """Any number M of modalities (the paper: 2) → logits [B, bins]. The text of the paper has lost its formulas: rebuilt from its prose.

    1. Patches [N, d_in] by an MLP d_in→d→d, gene groups by one SNN each n_g→1024→d (sec. 2.2); TransMIL layers over a class token and
       these (patches on a square, with PPEG, see `square`); the class token is v^m [d] (sec. 2.2).
    2. First level, experts of its own for each modality (eq. 1): v^m cut into d/t tokens v_i; p = softmax(W v_i) over E experts,
       V_intra = [Σ_{e ∈ top K} p_e FFN_e(v_i)]_i, V_share = [FFN_s(v_i)]_i, each [d]. p is not renormalised over the K.
    3. RFR (eqs 3–4) of V_intra^1…V_intra^M, V_share^1…V_share^M: each cut into s equal segments, the first segments of all sources
       side by side, then the second ones, … [2Md]; s drawn anew at every forward pass from the powers of 2 up to d/2.
    4. Second level (eq. 2): [2Md] cut into tokens of t; the same mixture with outputs of t/2 gives V_inter and V_share^3, [Md] each.
    5. RFR of these two [2Md], s up to Md/2, and a linear layer to the logits.
    L_dis (eq. 5), α: D⁻(V_intra^m, V_share^m) for each m + D⁻(V_inter, V_share^3) + D(V_inter, P [V_intra]) + D(V_share^3, P' [V_share]);
    D = 1 − cos, D⁻ = cos, P and P' linear (code). L_bal (eq. 6), β: `balance_loss` summed over the M + 1 mixtures.

    modalities: order matters. A bag of the cohort, `omics` (its grouping `groups`), or a further table as one group (our choice).
    square: the bags that lie on a square behind their encoder's class token; the others (slices of MRI) are a mere set.
    width d, token_length t, experts E, top_k K, expert_hidden, snn_hidden: sizes. landmarks: of the encoders; the code has d/2.
    nystrom_padding: `reference` (code) or `exact`: without padding, and up to `landmarks` tokens softmax attention itself (our choice).
    rfr: false = plain concatenation. fine_grained: false = one token a mixture. deredundancy: false = v^m itself in place of V_share^m in
    step 3. distance: cos, l1, mse or kl; D⁻ = 1/D there.
    rfr_eval: segments at prediction. `random`: drawn (paper), from torch's current seed. `mean`: the average hazard over all pairs of
    segment counts, that is what `random` gives on average (our choice). `fixed:s1,s2`. The last two draw nothing.
    missing: the method needs all modalities. `zeros`: an absent one is zero features (missing-modality benchmark), a bag one zero
    patch. `refuse`: such a patient is not predicted.
    """

    ordered = True  # squares, runs of landmarks and convolutions follow the order of patches

    def __init__(
        self,
        inputs: Inputs,
        *,
        modalities: Sequence[str],
        groups: str,
        square: Sequence[str],
        width: int,
        snn_hidden: int,
        dropout: float,
        heads: int,
        landmarks: int,
        attention_dropout: float,
        nystrom_padding: str,
        token_length: int,
        experts: int,
        top_k: int,
        expert_hidden: int,
        expert_dropout: float,
        rfr: bool,
        rfr_eval: str,
        fine_grained: bool,
        deredundancy: bool,
        distance: str,
        alpha: float,
        beta: float,
        missing: str,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.requires = choice("missing", missing, {"zeros": (), "refuse": self.modalities})
        self.distance, self.alpha, self.beta, self.deredundancy = choice("distance", distance, DISTANCES), alpha, beta, deredundancy
        length = len(self.modalities) * width  # of V_inter and V_share^3
        self._check(self.modalities, width, token_length, experts, top_k)
        attention = {"heads": heads, "landmarks": landmarks, "dropout": attention_dropout, "padding": nystrom_padding}
        self.encoders = nn.ModuleDict()
        for name in self.modalities:
            embed: nn.Module
            if name in inputs.bags:
                embed = _Patches(name, inputs.bags[name], width, dropout)
            elif name == "omics":
                embed = _Groups(groups, inputs.grouping(groups, "HDMoE"), snn_hidden, width, dropout)
            else:
                embed = _Groups(name, (inputs.vector(name, "HDMoE"),), snn_hidden, width, dropout)
            self.encoders[name] = _Encoder(embed, width, square=name in square, **attention)
        mixture = {"experts": experts, "k": top_k, "hidden": expert_hidden, "dropout": expert_dropout}
        first, second = (token_length, token_length) if fine_grained else (width, 2 * length)
        self.first = nn.ModuleDict({name: Mixture(first, first, **mixture) for name in self.modalities})
        self.second = Mixture(second, second // 2, **mixture)
        self.segments = [_segment_counts(n) if rfr else [1] for n in (width, length)]
        self.evaluated = _evaluated(rfr_eval, self.segments)
        self.project = nn.ModuleList(nn.Linear(length, length) for _ in range(2 if alpha else 0))  # only L_dis reads them
        self.head = nn.Linear(2 * length, inputs.bins)
        self.apply(_initialise)

    @staticmethod
    def _check(modalities: Sequence[str], width: int, token_length: int, experts: int, top_k: int) -> None:
        if not modalities or len(set(modalities)) < len(modalities):
            raise InputError("HDMoE reads every modality once", found=f"modalities [{', '.join(modalities)}]", expected="one or more")
        if width % token_length or token_length % 2:
            problem = f"HDMoE cuts vectors of {width} into tokens and halves these"
            raise InputError(problem, found=f"token_length {token_length}", expected="an even divisor of the option width")
        if not 1 <= top_k <= experts:
            raise InputError(f"HDMoE sends a token to some of its {experts} experts", found=f"top_k {top_k}", expected=f"1 to {experts}")

    def forward(self, patient: Patient) -> Output:
        """Logits [B, bins]. In training `losses` dis and bal, weighted. With `explain`, in `details`, for each modality m and ``second``:

        ``router_<m>`` [B, T, E] the probabilities p, ``gates_<m>`` [B, T, E] those of the chosen experts, 0 elsewhere (Fig. 6); for each m
        ``before_<m>``, ``after_<m>`` [B, T, t] the tokens before and behind the shared expert, ``correlation_before_<m>`` and
        ``correlation_after_<m>`` [B, T, T], |Pearson| between tokens (Fig. 5), ``relevance_<m>`` [B, T, N], see `_relevance` (Fig. 9). The
        ``…_second`` are [B, S, 2Md/t, E], S the counts s1 that are evaluated; ``segment_logits`` [B, S, S2, bins] those of each pair: any
        number of rounds of Table 7 without a further pass. Raises `InputError` for a patient without any modality, or without one under
        `refuse`.
        """
        self.check(patient)
        return Output.joined([self._one(patient.single(row)) for row in range(patient.size)])

    def _one(self, patient: Patient) -> Output:
        """One patient. Behind the encoders everything is small and compares numbers (which expert, which risk): not in half precision."""
        vectors = {name: self.encoders[name](patient) for name in self.modalities}  # v^m [1, d]
        with torch.autocast(self.head.weight.device.type, enabled=False):
            output = self._decoupled({name: vector.to(self.head.weight.dtype) for name, vector in vectors.items()})
        if self.explain:
            output.details.update({f"relevance_{name}": self._relevance(name, patient) for name in self.modalities})
        return output

    def _decoupled(self, vectors: Mapping[str, Tensor]) -> Output:
        """Steps 2–5 of one patient; S and S2 are the numbers of segment counts that are tried: 1 in training."""
        mixed = {name: self.first[name](vector) for name, vector in vectors.items()}
        routed, shared = [m.routed for m in mixed.values()], [m.shared for m in mixed.values()]
        s1, s2 = self._drawn() if self.training or not self.evaluated else self.evaluated
        sources = torch.stack([*routed, *(shared if self.deredundancy else vectors.values())], dim=1)  # [1, 2M, d]
        joint = self.second(torch.cat([reorganised(sources, s) for s in s1]))  # V_inter, V_share^3 [S, Md]
        pair = torch.stack([joint.routed, joint.shared], dim=1)  # [S, 2, Md]
        logits = self.head(torch.stack([reorganised(pair, s) for s in s2], dim=1))  # [S, S2, bins]
        losses = {}
        if self.training and self.alpha:
            losses["dis"] = self.alpha * self._decoupling(routed, shared, joint)
        if self.training and self.beta:
            losses["bal"] = self.beta * torch.cat([m.balance for m in (*mixed.values(), joint)]).sum()
        details = {"segment_logits": logits[None].detach(), **_details(mixed, joint)} if self.explain else {}
        return Output(_mean_hazard(logits.flatten(0, 1)), losses, details=details)

    def _drawn(self) -> tuple[list[int], list[int]]:
        """One segment count for each RFR."""
        first, second = ([counts[int(torch.randint(len(counts), ()))]] for counts in self.segments)
        return first, second

    def _decoupling(self, routed: Sequence[Tensor], shared: Sequence[Tensor], joint: Mixed) -> Tensor:
        """L_dis (eq. 5) of one patient, a scalar; for the cosine in [0, M + 5]."""
        pull, push = self.distance
        apart = sum(push(a, b) for a, b in zip([*routed, joint.routed], [*shared, joint.shared], strict=True))
        specific, common = (project(torch.cat(parts, dim=1)) for project, parts in zip(self.project, (routed, shared), strict=True))
        return apart + pull(joint.routed, specific) + pull(joint.shared, common)

    @torch.enable_grad()
    def _relevance(self, name: str, patient: Patient) -> Tensor:
        """What instance (or group) i of one patient has to do with the routed output y_j of token j, [1, T, N] (our recipe for Fig. 9).

        |Σ_c H[i, c] ∂‖y_j‖²/∂H[i, c]|, H [N, d] the embedded instances: gradient times input.
        """
        embedded = self.encoders[name].embed(patient).detach().requires_grad_()
        level = self.first[name](self.encoders[name].encode(embedded))
        powers = level.routed.view_as(level.tokens).square().sum(dim=-1)[0]  # ‖y_j‖² [T]
        slopes = [torch.autograd.grad(power, embedded, retain_graph=True)[0] for power in powers]
        return torch.stack([(embedded * slope).sum(dim=-1).abs() for slope in slopes], dim=1).detach()


def reorganised(sources: Tensor, segments: int) -> Tensor:
    """Random feature reorganisation (eqs 3–4) for one segment count s: sources [B, R, L] → [B, R · L].

    Place (j · R + r) · L/s + o holds source r at j · L/s + o: s = 1 is the concatenation, s = L takes the sources' values in turn.
    """
    return sources.unflatten(2, (segments, -1)).transpose(1, 2).flatten(1)


def _segment_counts(length: int) -> list[int]:
    """1, 2, 4, … up to length / 2, as far as they divide `length`."""
    powers = (1 << i for i in range(length.bit_length()))
    return [s for s in powers if s <= max(1, length // 2) and length % s == 0]


def _evaluated(rfr_eval: str, segments: Sequence[list[int]]) -> Sequence[list[int]]:
    """The segment counts of both RFRs that a prediction goes through; empty: drawn."""
    kind, _, numbers = rfr_eval.partition(":")
    if kind != "fixed":
        return choice("rfr_eval", rfr_eval, {"random": (), "mean": segments, "fixed:<s1>,<s2>": ()})
    chosen = [[int(n)] if n.strip().isdecimal() else [] for n in numbers.split(",")]
    if len(chosen) != 2 or any(not one or one[0] not in known for one, known in zip(chosen, segments, strict=True)):
        known = " and ".join(f"one of {', '.join(map(str, counts))}" for counts in segments)
        raise InputError("the model option 'rfr_eval' names two segment counts", found=rfr_eval, expected=f"fixed:<s1>,<s2> with {known}")
    return chosen


def _mean_hazard(logits: Tensor) -> Tensor:
    """The logit of the mean hazard σ(z) over the rows, [S, bins] → [1, bins]; computed in logarithms, which cannot overflow."""
    if len(logits) == 1:
        return logits
    return F.logsigmoid(logits).logsumexp(0, keepdim=True) - F.logsigmoid(-logits).logsumexp(0, keepdim=True)


def _details(mixed: Mapping[str, Mixed], joint: Mixed) -> dict[str, Tensor]:
    """What `HDMoE.forward` lists under `details`, of one patient."""
    details = {"router_second": joint.probabilities[None], "gates_second": joint.gates[None]}
    for name, level in mixed.items():
        details |= {f"router_{name}": level.probabilities, f"gates_{name}": level.gates}
        for when, tokens in (("before", level.tokens), ("after", level.shared.view_as(level.tokens))):
            details |= {f"{when}_{name}": tokens, f"correlation_{when}_{name}": _correlation(tokens)}
    return {name: value.detach() for name, value in details.items()}


def _correlation(tokens: Tensor) -> Tensor:
    """|Pearson| between tokens [B, T, t], [B, T, T]; 0 with a constant one."""
    unit = F.normalize(tokens - tokens.mean(dim=-1, keepdim=True), dim=-1)
    return (unit @ unit.transpose(1, 2)).abs()


# --- distances of eq. 5: D, which pulls together, and D⁻, which pushes apart; [1, L] × [1, L] → a scalar ---


def _inverse(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: 1 / (distance(a, b) + EPSILON)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b).squeeze(0)


def _divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(softmax a ‖ softmax b)."""
    return F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum")


DISTANCES = {
    "cos": (lambda a, b: 1 - _cosine(a, b), _cosine),
    "l1": (F.l1_loss, _inverse(F.l1_loss)),
    "mse": (F.mse_loss, _inverse(F.mse_loss)),
    "kl": (_divergence, _inverse(_divergence)),
}


# --- parts ---


class _Patches(nn.Module):
    """Instances of one patient [1, N, d_in] → [1, N, d] by two layers Linear–ReLU–Dropout; without the bag, one zero instance."""

    def __init__(self, name: str, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.name, self.width_in = name, width_in
        widths = (width_in, width)
        self.layers = nn.Sequential(*(m for w in widths for m in (nn.Linear(w, width), nn.ReLU(), Dropout(dropout))))

    def forward(self, patient: Patient) -> Tensor:
        return self.layers(patient.bag_or_zeros(self.name, self.width_in).features)


class _Groups(nn.Module):
    """Features of one patient in groups of n_g → [1, G, d], an SNN of two layers a group; without them, zeros.

    Two linear layers a group; ELU and AlphaDropout are those of all groups at once. (`GroupedEncoder`, made for hundreds of small
    groups, copies the gradients of its joint first layer once more: a quarter slower at these sizes.)
    A group without any feature has no token.
    """

    def __init__(self, name: str, sizes: Sequence[int], hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.name, self.sizes, self.dropout = name, [n for n in sizes if n], dropout
        self.first = nn.ModuleList(nn.Linear(n, hidden) for n in self.sizes)
        self.second = nn.ModuleList(nn.Linear(hidden, width) for _ in self.sizes)

    def forward(self, patient: Patient) -> Tensor:
        table = patient.vectors.get(self.name)
        features = patient.groups_or_zeros(self.name, sum(self.sizes)) if table is None else table
        hidden = self._layer(self.first, features.split(self.sizes, dim=1))
        return self._layer(self.second, hidden.unbind(dim=1))

    def _layer(self, networks: nn.ModuleList, parts: Sequence[Tensor]) -> Tensor:
        """G tensors [1, ·] → [1, G, width]."""
        x = F.elu(torch.stack([network(part) for network, part in zip(networks, parts, strict=True)], dim=1))
        return alpha_dropout(x, self.dropout) if self.training and self.dropout else x


class _Encoder(nn.Module):
    """Tokens by `embed`, a class token in front, X ← X + Nyström(LN(X)) twice, PPEG between on a `square`, LN; the class token [1, d].

    Of the second layer nothing but the class token is computed.
    """

    def __init__(self, embed: nn.Module, width: int, *, square: bool, heads: int, landmarks: int, dropout: float, padding: str) -> None:
        super().__init__()
        self.embed = embed
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
        layer = {"heads": heads, "landmarks": landmarks, "dropout": dropout, "padding": padding, "norm": "global"}
        layer["exact_if_short"] = padding == "exact"  # without padding there is nothing left to approximate
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.layers = nn.ModuleList(NystromAttention(width, **layer) for _ in range(2))
        self.position = PPEG(width) if square else None

    def forward(self, patient: Patient) -> Tensor:
        return self.encode(self.embed(patient))

    def encode(self, tokens: Tensor) -> Tensor:
        """Embedded tokens [1, N, d] → [1, d]."""
        if self.position is not None:
            tokens = fill_square(tokens)
        tokens = torch.cat([self.class_token, tokens], dim=1)
        tokens = tokens + self.layers[0](self.norms[0](tokens))
        if self.position is not None:
            tokens = self.position(tokens)
        first = tokens[:, 0] + self.layers[1](self.norms[1](tokens), rows=1)[:, 0]
        return self.norms[2](first)


def _initialise(module: nn.Module) -> None:
    """The code's: linear layers and experts Xavier-normal with bias 0; routers and convolutions keep PyTorch's values."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Experts):
        for matrix in (*module.weight_in.data, *module.weight_out.data):
            nn.init.xavier_normal_(matrix)
        nn.init.zeros_(module.bias_in)
        nn.init.zeros_(module.bias_out)
    elif isinstance(module, Mixture):  # comes after its parts
        module.router.reset_parameters()
