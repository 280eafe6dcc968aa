"""What a prediction and a training step cost against the number of patches: seconds, peak memory, growth; and what a switch saves.

Run: ``PYTHONPATH=src OMP_NUM_THREADS=1 python benchmarks/methods.py [model …] [--patches 1000 …]``. Each measurement is a process of
its own, at the model's registered reference input with bags of that length, one patient. Prints a TSV: model, option (the one that
differs from the model's settings), patches, pass (``forward`` in eval mode, ``step`` = forward, backward and optimiser), seconds,
peak_gib (of the process, the interpreter and the weights included), growth (exponents of seconds / memory beyond the smallest bag's
against the row before; 1 = linear), reason when there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.models import build_model, load_model_config
from pipeline.models.interface import SurvivalModel, Target
from pipeline.models.reference import reference_patient
from pipeline.models.registry import entry
from pipeline.training.losses import discrete_nll
from pipeline.training.protocol import Protocol

MODELS = ["adamhf", "camlif", "haf", "survq", "hdmoe"]
PATCHES = [1_000, 4_000, 16_000, 64_000, 100_000]
PASSES = ("forward", "step")
SECONDS = 900.0  # a measurement that takes longer is given up
PLAIN = {"folded": False, "exact_if_short": False, "padding": "reference"}  # the slower or rougher side of the switches that models have
COLUMNS = ["model", "option", "patches", "pass", "seconds", "peak_gib", "growth", "reason"]


def measure(name: str, options: dict[str, Any], patches: int, pass_: str) -> dict[str, float]:
    """Seconds of the second of two runs (the first warms up), and peak memory of this process in GiB."""
    torch.manual_seed(0)
    known = entry(name)
    model = build_model(name, known.reference, **options)
    patient = reference_patient(known.reference, patches)
    run = predict if pass_ == "forward" else Step(model, name)
    seconds = math.inf
    for _ in range(2 if patches <= 16_000 else 1):
        start = time.perf_counter()
        run(model, patient)
        seconds = min(seconds, time.perf_counter() - start)
    return {"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


@torch.no_grad()
def predict(model: SurvivalModel, patient: Any) -> None:
    """One prediction."""
    model.eval()(patient)


class Step:
    """One optimiser step on a patient who died in the first time bin."""

    def __init__(self, model: SurvivalModel, name: str) -> None:
        self.protocol = Protocol.of(load_model_config(name)["training"])
        self.optimizer = self.protocol.make_optimizer(model)

    def __call__(self, model: SurvivalModel, patient: Any) -> None:
        y, event = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
        target = Target(y, event, lambda logits: discrete_nll(logits, y, event, self.protocol.alpha))
        output = model.train()(patient)
        loss = target.loss(output.logits).mean()
        loss = loss + sum(output.losses.values()) + sum(model.supervised(output, target).values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_a_process(*arguments: str) -> dict[str, Any]:
    """What `measure` gives in a fresh process; the reason if it does not end well."""
    command = [sys.executable, __file__, "--one", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"more than {SECONDS:.0f} s"}
    if done.returncode:
        return {"reason": f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}"}
    return json.loads(done.stdout)


def growth(row: dict[str, Any], before: dict[str, Any] | None, smallest: dict[str, Any] | None) -> str:
    """Exponents of seconds and memory from `before` to `row`."""
    if before is None or "seconds" not in row or "seconds" not in before:
        return ""
    times = math.log(row["patches"] / before["patches"])
    exponents = [math.log(row["seconds"] / before["seconds"]) / times]
    memory = [r["peak_gib"] - smallest["peak_gib"] for r in (before, row)] if smallest is not before else []
    exponents += [math.log(memory[1] / memory[0]) / times] if memory and min(memory) > 0 else []
    return " / ".join(f"{value:.2f}" for value in exponents)


def rows(models: list[str], patches: list[int]) -> Iterator[dict[str, Any]]:
    """One row a measurement."""
    for name in models:
        settings = load_model_config(name)["model"]
        choices = [{}] + [{key: plain} for key, plain in PLAIN.items() if key in settings and settings[key] != plain]
        for options in choices:
            for pass_ in PASSES:
                before = smallest = None
                for count in patches:
                    row = {"model": name, "patches": count, "pass": pass_, "option": " ".join(f"{k}={v}" for k, v in options.items())}
                    row |= in_a_process(name, json.dumps(options), str(count), pass_)
                    row["growth"] = growth(row, before, smallest)
                    smallest = smallest or row
                    before = row
                    yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--patches", nargs="*", type=int, default=PATCHES)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.one:
        name, options, count, pass_ = [*arguments.models, *rest]
        try:
            print(json.dumps(measure(name, json.loads(options), int(count), pass_)))
        except InputError as error:
            sys.exit(str(error))
        return
    print(*COLUMNS, sep="\t")
    for row in rows(arguments.models, arguments.patches):
        shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()}
        print(*(shown.get(key, "") for key in COLUMNS), sep="\t", flush=True)


if __name__ == "__main__":
    main()
