"""How fast an encoder runs: the network as other pipelines run it, ours, and the limits of the machine, turn by turn in one run.

Run: ``PYTHONPATH=src python benchmarks/encoders.py [--threads 2] [--device cuda --model vit_large_patch16_224]``. Prints a TSV:
what, milliseconds a patch and of the CPU's time (each the best of the rounds; the latter is steadier on a shared machine), patches a
second, times faster than plain by both, cosine and relative difference of the features to those of plain.

Weights are random and BatchNorm's statistics too, which changes no time. plain = float32, NCHW, as CLAM and TRIDENT run it, on
tensors that are ready (their resizing is not counted); bare = the network alone, as we run it, on tensors that are ready;
ours = from uint8 patches of 256 pixels to features; limit = the network's multiplications at the rate of a large matrix product.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

from pipeline.slides.encoders.network import EncoderSettings, load_encoder
from pipeline.slides.encoders.replica import HALF
from pipeline.slides.encoders.table import EncoderSpec, encoder_spec

PATCH = 256
ENTRIES = {"resnet50": "resnet50_cut", "vit_large_patch16_224": "vit_large_patch16_224"}
MATRIX = {"cpu": 3072, "cuda": 8192}  # side of the matrices of the limit


def random_entry(model: str, folder: Path) -> tuple[torch.nn.Module, EncoderSpec]:
    """The network of a table's entry with random weights, and the entry with these as its checkpoint."""
    entry = ENTRIES.get(model, model)
    spec = encoder_spec(entry)
    torch.manual_seed(0)
    network = timm.create_model(spec.architecture, pretrained=False, **spec.options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.uniform_(-0.1, 0.1)
    torch.save(network.state_dict(), folder / "random.pth")
    return network, encoder_spec(entry, {entry: {"checkpoint": str(folder / "random.pth")}})


def pooled(output: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return output[-1].mean((2, 3)) if isinstance(output, list) else output


def operations(network: torch.nn.Module, side: int) -> float:
    """Multiplications and additions of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, side, side, device=device))
    return counter.get_total_flops()


def best_times(contenders: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Seconds on the wall and of the CPU, of the fastest call of each; called by turns so that a noisy moment strikes all alike."""
    best = dict.fromkeys(contenders, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, call in contenders.items():
            start, busy = time.perf_counter(), time.process_time()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            found = (time.perf_counter() - start, time.process_time() - busy)
            best[name] = (min(best[name][0], found[0]), min(best[name][1], found[1]))
    return best


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The least cosine of two patches' features, and the greatest difference relative to the greatest feature."""
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    return float(cosine.min()), float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="resnet50", help=f"{', '.join(ENTRIES)} or an entry of config/encoders.yaml")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--without-compiling", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (options.batch, PATCH, PATCH, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        network, spec = random_entry(options.model, Path(folder))
        how = {"device": options.device, "batch_size": options.batch, "threads": options.threads}
        ours = {"ours, eager": load_encoder(spec, EncoderSettings(**how, compile=False))}
        if not options.without_compiling:
            start = time.perf_counter()
            ours["ours, compiled"] = load_encoder(spec, EncoderSettings(**how, compile=True))
            print(f"# compiled in {time.perf_counter() - start:.1f} s (less where the compiler's cache holds it)", file=sys.stderr)
    network = network.to(options.device)
    contenders, results = _contenders(network, ours, patches, options.device)
    times = best_times(contenders, options.rounds, options.device)
    dtype = HALF.get(next(iter(ours.values())).describe()["precision"], torch.float32)
    rate = _matrix_rate(options.device, dtype)
    work = operations(network, spec.input_size) * options.batch
    times["limit"] = (work / rate[0], work / rate[1])
    columns = ["what", "ms_patch", "cpu_ms_patch", "patches_s", "times_plain", "times_plain_cpu", "cosine", "relative_difference"]
    print(*columns, sep="\t")
    for name, (seconds, busy) in times.items():
        agreement = ["1", "0"] if name == "plain" else ["", ""]
        if name in ours:
            agreement = [f"{x:.3g}" if x < 0.1 else f"{x:.7f}" for x in difference(results[name](), results["plain"]())]
        cost = [f"{1e3 * x / options.batch:.2f}" for x in (seconds, busy)]
        ratios = [f"{plain / x:.2f}" for plain, x in zip(times["plain"], (seconds, busy), strict=True)]
        print(name, *cost, f"{options.batch / seconds:.1f}", *ratios, *agreement, sep="\t")


def _contenders(
    network: torch.nn.Module, ours: dict, patches: np.ndarray, device: str
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], np.ndarray]]]:
    """What is timed, by name, and what gives features to compare."""
    (replica,) = next(iter(ours.values())).replicas
    with torch.inference_mode():
        ready = replica._prepare(torch.from_numpy(patches).to(device))
        plain_images = ready.contiguous()

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return pooled(network(plain_images)).float()

    def bare(encoder: object) -> Callable[[], object]:
        (copy,) = encoder.replicas

        def call() -> None:
            with copy._contexts():
                copy.network(ready)

        return call

    contenders: dict[str, Callable[[], object]] = {"plain": plain}
    results: dict[str, Callable[[], np.ndarray]] = {"plain": lambda: plain().cpu().numpy()}
    for name, encoder in ours.items():
        contenders[name.replace("ours", "bare")] = bare(encoder)
        contenders[name] = results[name] = lambda encoder=encoder: encoder.replicas[0].encode(patches)
    return contenders, results


def _matrix_rate(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second, on the wall and of the CPU, of a large matrix product: the best of five."""
    side = MATRIX[device]
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    with torch.inference_mode():
        seconds, busy = best_times({"product": lambda: a @ b}, 5, device)["product"]
    return 2 * side**3 / seconds, 2 * side**3 / busy


if __name__ == "__main__":
    main()
