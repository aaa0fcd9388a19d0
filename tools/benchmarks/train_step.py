"""Compare a training step with transformers' VitMatte-S: see tools/benchmark.py."""

import argparse
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inference.network import DTYPES
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT
from tools.benchmarks.fresh import PeakMemory, run_fresh, with_range
from tools.benchmarks.networks import transformers_vitmatte

SIDES = ("ours", "transformers")
CHECKPOINTED = {"none": (False, False), "backbone": (True, False), "all": (True, True)}
"""Name -> whether backbone and decoder use activation checkpointing."""


class TransformersViTMatte(nn.Module):
    """Wrap transformers' VitMatte-S with our losses."""

    def __init__(self) -> None:
        super().__init__()
        self.network = transformers_vitmatte()
        self.criterion = MattingCriterion()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = torch.cat(((batch["image"] - 0.5) / 0.5, batch["trimap"]), dim=1)
        return self.criterion(self.network(pixel_values=pixels).alphas, batch["alpha"], batch["trimap"])


def build(side: str, checkpointed: str) -> nn.Module:
    """Build a side with random weights; `checkpointed`, a key of `CHECKPOINTED`, is for ours."""
    if side == "transformers":
        return TransformersViTMatte()
    backbone, decoder = CHECKPOINTED[checkpointed]
    return ViTMatte(
        ViT(use_activation_checkpointing=backbone),
        DetailCapture(384, use_activation_checkpointing=decoder),
        MattingCriterion(),
    )


def measure_train_step(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Time the steps after the first one.

    Returns: "seconds", the median of a step, "first_seconds", the first one's, and "peak_gb" above the loaded process.
    """
    is_ours = side == "ours"
    precision = options.precision if is_ours else options.transformers_precision or options.precision
    device, size = options.device, (options.size_px, options.size_px)
    torch.manual_seed(0)
    model = build(side, options.activation_checkpointing).to(device).train()
    if options.compile and is_ours:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    batch = {
        "image": torch.rand(options.batch_size, 3, *size, device=device),
        "trimap": torch.randint(0, 3, (options.batch_size, 1, *size), device=device) / 2,
        "alpha": torch.rand(options.batch_size, 1, *size, device=device),
    }
    memory = PeakMemory(device)
    seconds = []
    for _ in range(options.num_steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, DTYPES[precision], enabled=precision != "float32"):
            losses = model(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if memory.is_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "first_seconds": seconds[0], "peak_gb": memory.above_gb()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--transformers-precision", choices=DTYPES, help="precision of transformers, if it differs")
    parser.add_argument("--activation-checkpointing", choices=CHECKPOINTED, default="none", help="of our side")
    parser.add_argument("--compile", action="store_true", help="compile our side with torch.compile")
    parser.add_argument("--device", default="cpu")


def run(options: argparse.Namespace) -> None:
    """Measure the sides alternately, each in a new process; print medians and the ratio of each round."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side, rounds in results.items():
            result = run_fresh(measure_train_step, side, options)
            rounds.append(result)
            first = f"  (first step {result['first_seconds']:.1f} s)" if options.compile and side == "ours" else ""
            figures = f"{result['seconds']:7.3f} s  {result['peak_gb']:6.3f} GB{first}"
            print(f"round {number + 1} {side:12s} {figures}", flush=True)
    for name, unit in (("seconds", "s"), ("peak_gb", "GB")):
        values = {side: [result[name] for result in rounds] for side, rounds in results.items()}
        line = "  ".join(f"{side} {statistics.median(found):.3f} {unit}" for side, found in values.items())
        if len(values) == 2:
            line += f"  ratio {with_range([a / b for a, b in zip(*values.values(), strict=True)], 3)}"
        print(f"median {name}: {line}")
