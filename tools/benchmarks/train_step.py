"""A training step beside transformers' VitMatte-S: see tools/benchmark.py."""

import argparse
import json
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inference.network import DTYPES
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT
from tools.benchmarks.fresh import PeakMemory, run_fresh, with_range
from tools.benchmarks.peers import transformers_vitmatte

SIDES = ("ours", "transformers")
SETTINGS = ("size_px", "batch_size", "num_steps", "device")
RECOMPUTED = {"none": (False, False), "backbone": (True, False), "all": (True, True)}
"""Name -> whether backbone and decoder recompute their activations."""


class TransformersViTMatte(nn.Module):
    """Transformers' VitMatte-S under our losses."""

    def __init__(self) -> None:
        super().__init__()
        self.network = transformers_vitmatte()
        self.criterion = MattingCriterion()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = torch.cat(((batch["image"] - 0.5) / 0.5, batch["trimap"]), dim=1)
        return self.criterion(self.network(pixel_values=pixels).alphas, batch["alpha"], batch["trimap"])


def build(side: str, recomputed: str = "none") -> nn.Module:
    """Build a side with random weights; `recomputed`, a key of `RECOMPUTED`, is for ours."""
    if side == "transformers":
        return TransformersViTMatte()
    backbone, decoder = RECOMPUTED[recomputed]
    return ViTMatte(
        ViT(use_activation_checkpointing=backbone),
        DetailCapture(384, use_activation_checkpointing=decoder),
        MattingCriterion(),
    )


def measure_train_step(
    side: str,
    size_px: int,
    batch_size: int,
    num_steps: int,
    precision: str,
    device: str,
    recomputed: str = "none",
    is_compiled: bool = False,
) -> dict[str, float]:
    """Time steps after one that warms up.

    Returns: "seconds", the median of a step, "first_seconds", the first one's, and "peak_gb" above the loaded process.
    """
    torch.manual_seed(0)
    model = build(side, recomputed).to(device).train()
    if is_compiled:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    batch = {
        "image": torch.rand(batch_size, 3, size_px, size_px, device=device),
        "trimap": torch.randint(0, 3, (batch_size, 1, size_px, size_px), device=device) / 2,
        "alpha": torch.rand(batch_size, 1, size_px, size_px, device=device),
    }
    memory = PeakMemory(device)
    seconds = []
    for _ in range(num_steps + 1):
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


def side_arguments(side: str, options: argparse.Namespace) -> list[str]:
    """Make the command line of a side's process; what is ours alone is not asked of the other."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    if side == "ours":
        settings |= {"precision": options.precision, "activation_checkpointing": options.activation_checkpointing}
    else:
        settings |= {"precision": options.transformers_precision or options.precision}
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
    return [part for pair in pairs for part in pair] + ["--compile"] * (options.compile and side == "ours")


def compare_train_step(options: argparse.Namespace) -> None:
    """Run the sides in turn, each round in new processes, and print medians and the ratio of each round."""
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for side in options.sides:
            result = run_fresh("train-step", "--only", side, *side_arguments(side, options))
            rounds[-1][side] = result
            first = f"  (first step {result['first_seconds']:.1f} s)" if options.compile and side == "ours" else ""
            print(
                f"round {number + 1} {side:12s} {result['seconds']:7.3f} s  {result['peak_gb']:6.3f} GB{first}",
                flush=True,
            )
    for name, unit in (("seconds", "s"), ("peak_gb", "GB")):
        medians = [statistics.median(r[side][name] for r in rounds) for side in options.sides]
        line = "  ".join(f"{side} {m:.3f} {unit}" for side, m in zip(options.sides, medians, strict=True))
        if len(options.sides) == 2:
            first, second = options.sides
            ratios = [r[first][name] / r[second][name] for r in rounds]
            line += f"  ratio {with_range(ratios, 3)}"
        print(f"median {name}: {line}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--transformers-precision", choices=DTYPES, help="precision of transformers, if it differs")
    parser.add_argument("--activation-checkpointing", choices=RECOMPUTED, default="none", help="of our side")
    parser.add_argument("--compile", action="store_true", help="compile our side with torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> None:
    """Compare the sides, or be the process of one."""
    if options.only is None:
        compare_train_step(options)
    else:
        settings = {name: getattr(options, name) for name in (*SETTINGS, "precision")}
        result = measure_train_step(
            options.only, **settings, recomputed=options.activation_checkpointing, is_compiled=options.compile
        )
        print(json.dumps(result))
