"""What one training epoch costs on bags of unequal length: this checkout, another one, the public code, and the matrix products alone.

Run: ``PYTHONPATH=src python benchmarks/training_epochs.py [model …] [--before CHECKOUT] [--public mcat=CHECKOUT hdmoe=CHECKOUT]``.
30 patients, lengths lognormal (median 1,500, at most 4,000; a batch of all of them is 2.2 times as long padded as it is real), each seen
once an epoch with all his patches, at the sizes of the model's registered reference input, one thread. Each measurement is a process of
its own: one epoch to warm up, then the best of three. Nothing is read from disk and nothing is scored in what is timed.

before, after: `Trainer` with the protocol of ``config/models``, features float16 in memory, in the other checkout and in this one.
public: the training loop of the method's public code itself (MCAT's for mcat and abmil; SurvQ has none), a patient at a time, features
float32 in memory. HDMoE's code runs tokens of 256 only, ours runs the paper's 64; it needs the package einops. Modules that these
codes import but do not use in training are stood in for where they are not installed; so is what torch and NumPy have dropped since.
floor: the matrix products, convolutions and fused attentions of one forward and backward pass a patient, unpadded, recorded from the
network of this checkout and run again alone, into memory that is there already.

Prints a TSV: model, who, cpu_s (user and system, an epoch), of_floor and of_public (ratios of it), peak_gb (of the process), held_gb (its
part before there is a network: interpreter, torch and data), gflop (of the products of an epoch), reason when there is no number.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from pipeline.cohort.loader import BagStore, CohortData
from pipeline.cohort.record import Labels
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import Inputs, SurvivalModel, Target
from pipeline.models.registry import entry
from pipeline.training.loop import Trainer
from pipeline.training.losses import discrete_nll
from pipeline.training.protocol import Protocol

MODELS = ["mcat", "abmil", "survq", "hdmoe"]
WHO = ("before", "after", "public", "floor")
PUBLIC = {"mcat": "mcat", "abmil": "mcat", "hdmoe": "hdmoe"}  # model → whose checkout holds it
PATIENTS, MEDIAN, SIGMA, LONGEST, BINS, SEED = 30, 1500, 1.0, 4000, 4, 2
EPOCHS = 3  # timed, behind the one that warms up
COLUMNS = ["model", "who", "cpu_s", "of_floor", "of_public", "peak_gb", "held_gb", "gflop", "reason"]
aten = torch.ops.aten
PREALLOCATED = {aten.mm: aten.mm.out, aten.addmm: aten.addmm.out, aten.bmm: aten.bmm.out, aten.baddbmm: aten.baddbmm.out}
FLASH = (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward)
PRODUCTS = {*PREALLOCATED, aten.convolution, aten.convolution_backward, *FLASH}


# --- data ---


def lengths() -> np.ndarray:
    """Patches of each patient."""
    drawn = np.random.default_rng(SEED).lognormal(np.log(MEDIAN), SIGMA, PATIENTS)
    return np.clip(drawn.round().astype(int), 1, LONGEST)


@dataclass
class Cohort:
    """Random patients: a float16 bag each [N, d], the genes of the one grouping side by side [P, Σ n_g], and labels."""

    bags: list[np.ndarray]
    omics: np.ndarray
    inputs: Inputs
    labels: Labels

    @classmethod
    def draw(cls, inputs: Inputs) -> Cohort:
        """Drawn anew, the same for everybody."""
        rng = np.random.default_rng(SEED)
        (width,) = inputs.bags.values()
        bags = [rng.standard_normal((n, width), dtype=np.float32).astype(np.float16) for n in lengths()]
        genes = sum(sum(sizes) for sizes in inputs.groups.values())
        y, event = rng.integers(BINS, size=PATIENTS), rng.integers(2, size=PATIENTS)
        labels = Labels([f"p{i}" for i in range(PATIENTS)], y + rng.random(PATIENTS), event, y, tuple(map(float, range(BINS + 1))))
        return cls(bags, rng.standard_normal((PATIENTS, genes), dtype=np.float32), inputs, labels)

    def data(self) -> CohortData:
        """As a fold holds it."""
        (modality,), (width,) = self.inputs.bags, self.inputs.bags.values()
        store = BagStore(width, {p: [bag] for p, bag in zip(self.labels.patients, self.bags, strict=True)})
        rows = {p: row for row, p in enumerate(self.labels.patients)}
        vectors = {"omics": (rows, self.omics)} if self.omics.size else {}
        groups = {name: np.arange(sum(sizes)) for name, sizes in self.inputs.groups.items()}
        return CohortData(vectors, groups, {modality: store})

    def loader(self) -> list[tuple[Any, ...]]:
        """What the public codes' loaders give: (bag, a tensor a gene group or one that is not read, bin, time, censored), float32.

        Takes the bags away, so that they are not held twice.
        """
        sizes = next(iter(self.inputs.groups.values()), ())
        batches = []
        for row in range(PATIENTS):
            groups = torch.from_numpy(self.omics[row]).split(sizes) if sizes else [torch.zeros(1, 1)]
            y, time_, event = (values[row] for values in (self.labels.y, self.labels.time, self.labels.event))
            label, censored = torch.tensor([int(y)]), torch.tensor([1.0 - float(event)])
            batches.append((torch.from_numpy(self.bags.pop(0).astype(np.float32)), *groups, label, float(time_), censored))
        return batches


# --- who is measured: each gives what the process held before there was a network, and a function that runs one epoch ---

Ready = tuple[float, Callable[[], Any]]


def ours(name: str, cohort: Cohort) -> Ready:
    """The trainer of the checkout that is on the path."""
    torch.manual_seed(SEED)
    every_patch = {"sampler": "uniform", "max_patches_train": None}
    protocol = Protocol.of({**load_model_config(name)["training"], **every_patch, "epochs": 1, "checkpoint_seconds": math.inf})
    data, nobody, folder = cohort.data(), cohort.labels.take(np.arange(0)), tempfile.TemporaryDirectory()
    held = peak()
    trainer = Trainer(build_model(name, cohort.inputs), data, protocol, SEED)
    return held, lambda: trainer.fit(cohort.labels, None, nobody, Path(folder.name) / "checkpoint.pt", "epoch")


def stand_in(*names: str) -> None:
    """Empty modules in place of those that cannot be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()


class _Scores(np.ndarray):
    """Takes an array of one element for an element, as NumPy did before 2.4."""

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(at, np.squeeze(value))


OLD_NUMPY = SimpleNamespace(**{**vars(np), "zeros": lambda shape: np.zeros(shape).view(_Scores)})


def public_mcat(name: str, cohort: Cohort) -> Ready:
    """MCAT's loops with the defaults of its command line; `abmil` is its attention MIL."""
    stand_in("torchvision", "torch_geometric", "torch_geometric.data", "lifelines", "lifelines.utils")
    linear = torch.nn.modules.linear
    linear._LinearWithBias = linear.NonDynamicallyQuantizableLinear
    core, coattention = importlib.import_module("utils.core_utils"), importlib.import_module("utils.coattn_train_utils")
    core.np = coattention.np = OLD_NUMPY
    loss, loader = core.NLLSurvLoss(alpha=0.0), cohort.loader()
    torch.manual_seed(SEED)
    held = peak()
    model = core.MCAT_Surv(omic_sizes=list(cohort.inputs.groups["families"])) if name == "mcat" else core.MIL_Attention_FC_surv()
    loop = coattention.train_loop_survival_coattn if name == "mcat" else core.train_loop_survival
    optimizer = core.get_optim(model, Namespace(opt="adam", lr=2e-4, reg=1e-5))
    return held, lambda: loop(0, model, loader, optimizer, BINS, loss_fn=loss, gc=32)


def public_hdmoe(name: str, cohort: Cohort) -> Ready:
    """HDMoE's loop with the settings of its start script."""
    stand_in("torch.utils.tensorboard")
    torch.Tensor.cuda = lambda self: self
    network, engine, loss, optimizer = (
        importlib.import_module(part) for part in ("models.hdmoe.network", "models.hdmoe.engine", "utils.loss", "utils.optimizer")
    )
    engine.np = OLD_NUMPY
    experts = {"top_k": 1, "n_routed_experts": 8, "n_shared_experts": True, "gate_dim": 256}
    options = Namespace(**experts, alpha=1, loss="nll_surv_cos", optimizer="Adam", lr=5e-4, weight_decay=1e-5, log_data=False)
    loader = cohort.loader()
    torch.manual_seed(SEED)
    held = peak()
    model = network.HDMoE(options, omic_sizes=list(cohort.inputs.groups["families"]))
    runner = engine.Engine(options, "", 0)
    runner.writer, runner.epoch = None, 0
    criterion, adam = loss.define_loss(options), optimizer.define_optimizer(options, model)
    return held, lambda: runner.train(loader, model, criterion, adam)


@dataclass(frozen=True)
class Operand:
    """A tensor as a product saw it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Operand:
        return cls(tuple(x.shape), x.stride(), x.dtype)

    def draw(self) -> Tensor:
        size = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(size).to(self.dtype).as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Counts the products by operation and operands, and their operations."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, list[Any]] = {}  # description → [how often, operation, operands]
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            operands = tree_map_only(Tensor, Operand.of, (args, kwargs or {}))
            self.products.setdefault(f"{func}{operands}", [0, func, operands])[0] += 1
            self.flop += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def recorded(name: str, cohort: Cohort) -> Recorder:
    """The products of one forward and backward pass a patient."""
    torch.manual_seed(SEED)
    model: SurvivalModel = build_model(name, cohort.inputs).train()
    data, labels = cohort.data(), cohort.labels
    with Recorder() as recorder:
        for row, patient in enumerate(labels.patients):
            y, event = torch.from_numpy(labels.y[[row]]), torch.from_numpy(labels.event[[row]] > 0)
            target = Target(y, event, lambda logits, y=y, event=event: discrete_nll(logits, y, event, 0.0))
            output = model(data.batch([patient]))
            auxiliary = [*output.losses.values(), *model.supervised(output, target).values()]
            (target.loss(output.logits).sum() + sum(auxiliary)).backward()
            model.zero_grad()
    return recorder


def replayed(recorder: Recorder) -> float:
    """CPU seconds of the products; equal ones are run one behind the other on the same operands."""
    total = 0.0
    for count, func, operands in recorder.products.values():
        args, kwargs = tree_map_only(Operand, Operand.draw, operands)
        result = func(*args, **kwargs)
        into = PREALLOCATED.get(func.overloadpacket)
        run, kwargs = (into, {**kwargs, "out": result}) if into else (func, kwargs)
        total += best(lambda run=run, args=args, kwargs=kwargs, count=count: [run(*args, **kwargs) for _ in range(count)])
    return total


# --- measuring ---


def best(run: Callable[[], Any]) -> float:
    """CPU seconds, the least of `EPOCHS` runs behind one that warms up."""
    run()
    seconds = math.inf
    for _ in range(EPOCHS):
        start = time.process_time()
        run()
        seconds = min(seconds, time.process_time() - start)
    return seconds


def peak() -> float:
    """Most memory this process has had so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(name: str, who: str) -> dict[str, float]:
    """One row's numbers, in this process."""
    torch.set_num_threads(1)
    cohort = Cohort.draw(entry(name).reference)
    if who == "floor":
        recorder = recorded(name, cohort)
        return {"cpu_s": replayed(recorder), "gflop": recorder.flop / 1e9}
    prepare = ours if who != "public" else public_hdmoe if name == "hdmoe" else public_mcat
    with contextlib.redirect_stdout(io.StringIO()):
        held, epoch = prepare(name, cohort)
        seconds = best(epoch)
    return {"cpu_s": seconds, "peak_gb": peak(), "held_gb": held}


def in_a_process(name: str, who: str, *paths: Path) -> dict[str, Any]:
    """What `measure` gives in a fresh process with `paths` in front of the module path; the reason if it does not end well."""
    path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, __file__, "--one", name, who]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"reason": f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}"}
    return json.loads(done.stdout)


def rows(models: list[str], before: Path | None, public: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """One row a model and who."""
    here = Path(__file__).resolve().parents[1] / "src"
    for name in models:
        found: dict[str, dict[str, Any]] = {}
        for who in WHO:
            code = public.get(PUBLIC.get(name, ""))
            paths = {"before": before and [before / "src"], "after": [here], "public": code and [here, code], "floor": [here]}[who]
            missing = "no public code" if who == "public" and name not in PUBLIC else "no checkout given"
            found[who] = in_a_process(name, who, *paths) if paths else {"reason": missing}
        for who, row in found.items():
            others = [other for other in ("floor", "public") if "cpu_s" in row and "cpu_s" in found[other]]
            ratios = {f"of_{other}": row["cpu_s"] / found[other]["cpu_s"] for other in others}
            yield {"model": name, "who": who, **row, **ratios}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--public", nargs="+", default=[], metavar="NAME=CHECKOUT")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    public = {name: Path(path).resolve() for name, _, path in (text.partition("=") for text in options.public)}
    print(*COLUMNS, sep="\t")
    for row in rows(options.models, options.before and options.before.resolve(), public):
        shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}
        print(*(shown.get(key, "") for key in COLUMNS), sep="\t", flush=True)


if __name__ == "__main__":
    main()
