"""Measure a training step beside another implementation's, in one run.

    python tools/benchmark.py train-step
    python tools/benchmark.py train-step --sides ours --precision bf16 --device cuda

A step is forward, losses, backward and AdamW at 512 px, batch 2: our ViTMatte-S against transformers' VitMatte-S, a ViT
with relative positions, under the same losses and optimiser. Each side runs in a process of its own, in turn, so that
its peak memory is its own; "memory" is the peak above what the process holds when model and batch are loaded. Quote the
ratio: times of a shared machine drift.
"""

import _root  # noqa: F401

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class TransformersViTMatte(nn.Module):
    """Transformers' VitMatte-S under our losses."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

        backbone = VitDetConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_channels=4,
            image_size=512,
            pretrain_image_size=224,
            patch_size=16,
            window_size=14,
            window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
            residual_block_indices=[2, 5, 8, 11],
            use_relative_position_embeddings=True,
            out_features=["stage12"],  # type: ignore[call-arg]  # an argument of every backbone's config
        )
        config = VitMatteConfig(
            backbone_config=backbone,
            hidden_size=384,
            convstream_hidden_sizes=[48, 96, 192],
            fusion_hidden_sizes=[256, 128, 64, 32],
        )
        self.network = VitMatteForImageMatting(config)
        self.criterion = MattingCriterion()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = torch.cat(((batch["image"] - 0.5) / 0.5, batch["trimap"]), dim=1)
        return self.criterion(self.network(pixel_values=pixels).alphas, batch["alpha"], batch["trimap"])


def build(side: str) -> nn.Module:
    """Build a side with random weights."""
    if side == "transformers":
        return TransformersViTMatte()
    return ViTMatte(ViT(), DetailCapture(384), MattingCriterion())


def measure_train_step(
    side: str, size_px: int, batch_size: int, num_steps: int, precision: str, device: str
) -> dict[str, float]:
    """Time steps after one that warms up.

    Returns: "seconds", the median of a step, and "peak_gb" above the loaded process.
    """
    torch.manual_seed(0)
    model = build(side).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    batch = {
        "image": torch.rand(batch_size, 3, size_px, size_px, device=device),
        "trimap": torch.randint(0, 3, (batch_size, 1, size_px, size_px), device=device) / 2,
        "alpha": torch.rand(batch_size, 1, size_px, size_px, device=device),
    }
    is_cuda = device.startswith("cuda")
    loaded = torch.cuda.memory_allocated() if is_cuda else _peak_bytes()
    seconds = []
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, DTYPES[precision], enabled=precision != "float32"):
            losses = model(batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if is_cuda else _peak_bytes()
    return {"seconds": statistics.median(seconds[1:]), "peak_gb": (peak - loaded) / 1e9}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def compare_train_step(options: argparse.Namespace) -> None:
    """Run the sides in turn, each round in new processes, and print medians and the ratio of each round."""
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for side in options.sides:
            command = [sys.executable, __file__, "train-step", "--only", side]
            for name in ("size_px", "batch_size", "num_steps", "precision", "device"):
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            rounds[-1][side] = result
            print(f"round {number + 1} {side:12s} {result['seconds']:7.3f} s  {result['peak_gb']:6.3f} GB", flush=True)
    for name, unit in (("seconds", "s"), ("peak_gb", "GB")):
        medians = [statistics.median(r[side][name] for r in rounds) for side in options.sides]
        line = "  ".join(f"{side} {m:.3f} {unit}" for side, m in zip(options.sides, medians, strict=True))
        if len(options.sides) == 2:
            first, second = options.sides
            ratios = [r[first][name] / r[second][name] for r in rounds]
            line += f"  ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"median {name}: {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line (`sys.argv` by default) and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("train-step", help="forward, losses, backward, AdamW")
    step.add_argument("--sides", nargs="+", choices=("ours", "transformers"), default=["ours", "transformers"])
    step.add_argument("--size-px", type=int, default=512)
    step.add_argument("--batch-size", type=int, default=2)
    step.add_argument("--num-steps", type=int, default=3, help="timed steps in a process, after one that is not")
    step.add_argument("--rounds", type=int, default=3)
    step.add_argument("--precision", choices=DTYPES, default="float32")
    step.add_argument("--device", default="cpu")
    step.add_argument("--only", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only is None:
        compare_train_step(options)
    else:
        names = ("size_px", "batch_size", "num_steps", "precision", "device")
        print(json.dumps(measure_train_step(options.only, **{name: getattr(options, name) for name in names})))


if __name__ == "__main__":
    main()
