"""Count parameters, operations and training memory of each recipe: see tools/benchmark.py."""

import argparse
import ast
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from engine.config.config import build_section, load_config
from inference.network import DTYPES
from modeling.lr_groups import is_pretrained
from runtime.command_line import integer_from
from tools.benchmarks.fresh import PeakMemory, run_fresh

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SIZES_PX = (512, 2048)


class Step(NamedTuple):
    """Settings of a training step: its precision, and the parts of the network with activation checkpointing."""

    precision: str
    checkpointed: tuple[str, ...] = ()


STEPS = {
    "float32": Step("float32"),
    "float32, backbone recomputed": Step("float32", ("backbone",)),
    "float32, decoder too": Step("float32", ("backbone", "decoder")),
    "bf16": Step("bf16"),
    "bf16, backbone recomputed": Step("bf16", ("backbone",)),
    "bf16, decoder too": Step("bf16", ("backbone", "decoder")),
}


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that are made inside it, and the most that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # of each storage that lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def build_on_meta(cfg: DictConfig, step: Step | None = None) -> nn.Module:
    """Build a config's network without memory for its weights, with the settings of a step if one is given."""
    settings = cfg.model.copy()
    if step is not None:
        for part in ("backbone", "decoder"):
            settings[part].use_activation_checkpointing = part in step.checkpointed
    with torch.device("meta"):
        return build_section(settings, "model")


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Count the numbers in "backbone", "necks" and "decoder", and those "trainable"."""
    counts = dict.fromkeys(("backbone", "necks", "decoder", "trainable"), 0)
    for name, parameter in model.named_parameters():
        part = "decoder" if name.startswith("decoder.") else "backbone" if is_pretrained(name) else "necks"
        counts[part] += parameter.numel()
        counts["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


def count_flops(model: nn.Module, size_px: int) -> int:
    """Count the floating-point operations of a forward pass of one square image; a product and its sum are two.

    Only convolutions and matrix products count, those of attention included.
    """
    with torch.device("meta"):
        batch = {"image": torch.empty(1, 3, size_px, size_px), "trimap": torch.empty(1, 1, size_px, size_px)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(batch)
    return counter.get_total_flops()


def list_recipes() -> list[Path]:
    """List the configs of ViTMatte, the smallest network first."""

    def size(path: Path) -> tuple[int, str]:
        return sum(parameter.numel() for parameter in build_on_meta(load_config(path)).parameters()), path.name

    return sorted(CONFIGS.glob("ViTMatte_*.py"), key=size)


def train_step(model: nn.Module, batch: dict[str, Tensor], precision: str) -> None:
    """Compute gradients as `engine.trainer.Trainer` does."""
    with torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32"):
        losses = model(batch)
    sum(losses.values()).backward()


def make_batch(batch_size: int, size_px: int) -> dict[str, Tensor]:
    """Make a batch of noise, unknown everywhere."""
    shapes = {name: (batch_size, channels, size_px, size_px) for name, channels in (("image", 3), ("alpha", 1))}
    batch = {name: torch.rand(shape) for name, shape in shapes.items()}
    return {**batch, "trimap": torch.full_like(batch["alpha"], 0.5)}


def predict_peak(cfg: DictConfig, step: Step, batch_size: int, size_px: int) -> int:
    """Compute the most bytes that tensors hold at once in a step: weights, gradients, AdamW's moments, activations.

    It runs on fake tensors, which have a size and no data. Scratch memory of kernels and of the allocator is not
    counted.
    """
    model = build_on_meta(cfg, step).train()
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        model.to_empty(device="cpu")
        moments = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        train_step(model, make_batch(batch_size, size_px), step.precision)
    del moments
    return memory.peak


def measure_peak(path: Path, step: Step, batch_size: int, size_px: int) -> float:
    """Run two real steps on the CPU, and return the GB of resident memory above the process without the network."""
    cfg = load_config(path)
    memory = PeakMemory("cpu")
    model = build_on_meta(cfg, step).train().to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_() if tensor.is_floating_point() else tensor.fill_(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batch = make_batch(batch_size, size_px)
    for _ in range(2):
        optimizer.zero_grad()
        train_step(model, batch, step.precision)
        optimizer.step()
    return memory.above_gb()


def read_result(path: Path) -> str:
    """Return the result that the head of a config states."""
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = re.search(r"^Result: +(.+?)\.?$", head, re.MULTILINE)
    return found[1] if found else "to be measured"


def crop_px(cfg: DictConfig) -> int:
    """Return the side of a recipe's crops; all members of a mixture have the same."""
    dataset = cfg.dataloader.train.dataset
    members = [dataset, *(member for member in dataset.values() if isinstance(member, DictConfig))]
    return next(member.crop_px for member in members if "crop_px" in member)


def size_row(path: Path) -> list[str]:
    """Count parameters and operations of a recipe's network."""
    cfg = load_config(path)
    model = build_on_meta(cfg)
    counts = count_parameters(model)
    flops = [count_flops(model, size_px) for size_px in SIZES_PX]
    recipe = [str(crop_px(cfg)), f"{cfg.model.backbone.drop_path_rate:g}"]
    millions = [f"{number / 1e6:.2f}" for number in counts.values()]
    return [f"`{path.name}`", *recipe, *millions, *(f"{number / 1e9:.1f}" for number in flops), read_result(path)]


def memory_row(path: Path, batch_size: int | None, measures: bool) -> list[str]:
    """Predict the memory of a recipe's training step in GB; with `measures` also run it, the result in brackets.

    Args:
        path: of the config.
        batch_size: crops per process; None takes the config's own.
        measures: run real steps too.
    """
    cfg = load_config(path)
    size_px = crop_px(cfg)
    batch_size = batch_size or cfg.dataloader.train.batch_size
    cells = []
    for step in STEPS.values():
        cell = f"{predict_peak(cfg, step, batch_size, size_px) / 1e9:.1f}"
        if measures:
            cell = f"{cell} ({run_fresh(measure_peak, path, step, batch_size, size_px):.1f})"
        cells.append(cell)
    return [f"`{path.name}`", str(batch_size), str(size_px), *cells]


def print_table(head: list[str], paths: list[Path], make_row: Callable[[Path], list[str]]) -> None:
    """Print a Markdown table, each row as soon as it is computed."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for path in paths:
        print(f"| {' | '.join(make_row(path))} |", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--configs", nargs="+", type=existing_file, help="default: all ViTMatte_*.py")
    parser.add_argument("--batch-size", type=integer_from(1), help="crops per process (default: as in the config)")
    parser.add_argument("--tables", nargs="+", choices=("sizes", "memory"), default=["sizes", "memory"])
    parser.add_argument("--measure", action="store_true", help="for memory: run real steps on the CPU too")


def existing_file(text: str) -> Path:
    """Check that a file of the command line exists."""
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def run(options: argparse.Namespace) -> None:
    """Print the tables."""
    configs = options.configs or list_recipes()
    if "sizes" in options.tables:
        counts = ["backbone, M", "necks", "decoder", "trainable"]
        flops = [f"GFLOPs, {size_px} px" for size_px in SIZES_PX]
        print_table(["config", "crop, px", "drop path", *counts, *flops, "result"], configs, size_row)
    if "memory" in options.tables:
        head = ["config", "crops", "crop, px", *STEPS]
        print_table(head, configs, lambda path: memory_row(path, options.batch_size, options.measure))
