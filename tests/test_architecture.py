"""Who may import whom: a table of allowed imports, no import cycles, small package folders."""

import ast
import graphlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

BACKBONE = "modeling.backbone"
LEAVES = (f"{BACKBONE}.rope_position_encoding", f"{BACKBONE}.windows", f"{BACKBONE}.layers", f"{BACKBONE}.sdpa")
NETWORK = ("torch", "timm.layers", "runtime.errors")
IMAGES = ("data.image_io", "data.trimap", "data.trimap_check", "data.mask")
EVALUATION = ("numpy", "cv2", "scipy.stats", "tabulate", "runtime", *IMAGES, "data.optical_flow",
              "evaluation.metrics", "evaluation.connectivity", "evaluation.folders", "evaluation.output",
              "evaluation.video",
              "evaluation.statistics")  # fmt: skip
TOOLS = ("_root", "modeling", "data", "evaluation", "engine", "inference", "preprocess", "runtime", "*")
# Of detectron2's own interface: configs, overrides, saved configs, schedules.
ENGINE = ("engine.config", "engine.interrupts", "engine.batches", "runtime", "torch", "safetensors", "detectron2",
          "fvcore", "omegaconf", "hydra")  # fmt: skip
DATA = ("runtime", "numpy", "cv2", "PIL", "torch")

# Module or package -> what it may import beside the standard library; the longest name that matches a module decides.
ALLOWED: dict[str, tuple[str, ...]] = {
    # fvcore for detectron2's schedules, which a config names.
    "configs": ("configs", "modeling", "data", "evaluation", "engine", "inference.network", "detectron2", "fvcore"),
    "runtime": ("runtime", "torch", "safetensors", "yaml", "cv2"),
    "main": ("engine", "runtime", "detectron2", "omegaconf"),
    "preprocess": ("torch", "modeling.conversion", "runtime"),
    "tools": TOOLS,
    # What is behind a tool too long for one file.
    "tools.benchmark": (*TOOLS, "tools.benchmarks"),
    "tools.benchmarks": (*TOOLS, "tools.benchmarks"),
    "tools.predict": (*TOOLS, "tools.prediction"),
    "tools.evaluate": (*TOOLS, "tools.prediction"),
    "tools.make_trimap": (*TOOLS, "tools.prediction"),
    "tools.prediction": (*TOOLS, "tools.prediction"),
    "tools.serve": (*TOOLS, "tools.serving"),
    "tools.serving": (*TOOLS, "tools.prediction", "tools.serving"),
    "tools.make_open_dataset": (*TOOLS, "tools.dataset.open_data"),
    "tools.make_test_set": (*TOOLS, "tools.dataset.open_data"),
    "tools.dataset.open_data": (*TOOLS, "tools.dataset.open_data"),
    "tools.runs": (*TOOLS, "tools.runs"),
    "tools.__init__": (),
    "tools._root": ("runtime.openmp",),
    **dict.fromkeys(("tools.dataset._root", "tools.runs._root"), ("tools._root",)),
    "tools.runs.install_detectron2": (),
    # What runs without detectron2.
    "inference": ("inference", "modeling", *IMAGES, "data.composition", "data.optical_flow", "runtime", "torch",
                  "torchvision", "timm", "numpy", "cv2", "PIL", "safetensors", "huggingface_hub"),
    # A config and its checkpoint are read as training reads them, if one is given.
    "inference.predictor": ("inference", "modeling.test_time_augmentation", *IMAGES, "runtime", "torch", "numpy",
                            "engine.checkpoint.load_model"),
    # engine: interrupts, batches, config <- logging, stops <- distributed <- checkpoint <- trainer <- hooks <- run.
    "engine": (*ENGINE, "engine"),
    "engine.interrupts": ("runtime", "torch"),
    "engine.batches": ("engine.interrupts", "runtime", "torch", "detectron2"),
    "engine.config": ENGINE,
    "engine.logging": (*ENGINE, "engine.logging"),
    "engine.stops": ("engine.interrupts", "engine.out_of_memory", "runtime", "torch", "detectron2"),
    "engine.distributed": (*ENGINE, "engine.out_of_memory", "engine.stops", "engine.distributed"),
    "engine.checkpoint": (*ENGINE, "engine.out_of_memory", "engine.distributed", "engine.checkpoint"),
    "engine.trainer": (*ENGINE, "engine.ema", "engine.distributed", "engine.checkpoint"),
    "engine.hooks": (*ENGINE, "engine.ema", "engine.out_of_memory", "engine.stops", "engine.logging",
                     "engine.distributed", "engine.checkpoint", "engine.trainer", "engine.hooks",
                     "engine.lr_scheduler"),
    "modeling": (*NETWORK, "modeling"),
    **dict.fromkeys(("modeling.vitmatte", "modeling.activation_checkpointing"), NETWORK),
    # Published weights as initial checkpoints.
    "modeling.conversion": ("torch", "timm.layers", "safetensors", "modeling.conversion", "modeling.backbone",
                            "runtime"),
    f"{BACKBONE}.__init__": (BACKBONE,),
    BACKBONE: (*NETWORK, "modeling.activation_checkpointing", *LEAVES[1:]),
    **dict.fromkeys(LEAVES, NETWORK),
    f"{BACKBONE}.attention": (*NETWORK, *LEAVES),
    f"{BACKBONE}.block": (*NETWORK, *LEAVES, f"{BACKBONE}.attention"),
    **dict.fromkeys(
        (f"{BACKBONE}.token_vit", f"{BACKBONE}.vit", f"{BACKBONE}.dinov2"),
        (*NETWORK, *LEAVES, "modeling.activation_checkpointing", f"{BACKBONE}.attention", f"{BACKBONE}.block",
         f"{BACKBONE}.token_vit"),
    ),
    # data: image_io <- video_io, trimap, composition <- sources <- augment <- datasets; loader stands beside.
    "data": (*DATA, *IMAGES),
    "data.image_io": (*DATA, "data.image_io", "imagecodecs", "OpenEXR", "pillow_heif", "tifffile"),
    "data.video_io": ("runtime", "numpy", "data.image_io", "data.video_io", "av"),
    "data.validation": ("runtime.errors",),
    "data.loader": (*DATA, "data.image_io", "data.validation", "data.loader"),
    "data.procedural": (*DATA, "data.composition", "data.image_io", "data.procedural"),
    "data.sources": (*DATA, *IMAGES, "data.composition", "data.sources", "safetensors"),
    "data.augment": (*DATA, *IMAGES, "data.composition", "data.validation", "data.sources", "data.augment"),
    "data.datasets": (*DATA, *IMAGES, "data.composition", "data.validation", "data.sources", "data.augment",
                      "data.loader.sampler", "data.datasets"),
    "data.checks": (*DATA, "data"),
    "evaluation": EVALUATION,
    # What evaluates in training.
    "evaluation.evaluator": (*EVALUATION, "torch", "detectron2"),
}  # fmt: skip
NOT_PRODUCT = {"tests", "output", "datasets"}
MAX_ENTRIES = 14


def product_modules(root: Path) -> dict[Path, str]:
    """Map each Python file of the product to its dotted name, such as "modeling.backbone.__init__"."""
    relative = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    return {
        root / path: ".".join(path.with_suffix("").parts)
        for path in relative
        if path.parts[0] not in NOT_PRODUCT and not any(part.startswith(".") for part in path.parts)
    }


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Yield what a file imports, anywhere in it, as absolute dotted names: `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def first_import(path: Path) -> str:
    """Return the first import statement of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return ast.unparse(next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom)))


def is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def forbidden_imports(root: Path) -> list[str]:
    """List the imports under a root that the table does not allow, one line each."""
    modules = product_modules(root)
    ours = {module.split(".")[0] for module in modules.values()} | {"tests"}
    # Run as scripts, tools see each other as top-level modules.
    ours |= {part for module in modules.values() if module.startswith("tools.") for part in module.split(".")[1:]}
    found = []
    for path, module in modules.items():
        rules = [rule for rule in ALLOWED if is_within(module, (rule,))]
        if not rules:
            found.append(f"{module} -> (the module is not in the table)")
            continue
        allowed = ALLOWED[max(rules, key=len)]
        for name in imported_names(path, module):
            top = name.split(".")[0]
            is_free = top not in ours and (top in sys.stdlib_module_names or "*" in allowed)
            if not is_free and not is_within(name, allowed):
                found.append(f"{module} -> {name}")
    return found


def import_cycle(root: Path) -> list[str]:
    """Return a cycle of imports between the modules under a root, [] if there is none.

    Imports inside functions and for type checks count too. An import of `a.b` also loads the package `a`.
    """
    modules = product_modules(root)
    by_name = {module.removesuffix(".__init__"): module for module in modules.values()}
    graph = {}
    for path, module in modules.items():
        parts = [name.split(".") for name in imported_names(path, module)]
        loaded = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
        # A module's own packages are being loaded before it.
        graph[module] = {by_name[name] for name in loaded & by_name.keys() if not is_within(module, (name,))}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def crowded_packages(root: Path) -> dict[str, int]:
    """Count the entries of each package folder that has more than `MAX_ENTRIES`, `__init__.py` not counted."""
    entries: defaultdict[str, set[str]] = defaultdict(set)
    for module in product_modules(root).values():
        parts = module.removesuffix(".__init__").split(".")
        for depth in range(1, len(parts)):
            entries[".".join(parts[:depth])].add(parts[depth])
    del entries["configs"]  # one file for each experiment
    return {package: len(names) for package, names in entries.items() if len(names) > MAX_ENTRIES}


def test_every_import_is_in_the_table():
    assert forbidden_imports(REPOSITORY) == []


def test_no_imports_form_a_cycle():
    assert import_cycle(REPOSITORY) == []


def test_no_package_folder_has_too_many_entries():
    assert crowded_packages(REPOSITORY) == {}


def test_every_tool_imports_root_first():
    scripts = [path for path in REPOSITORY.glob("tools/**/*.py") if "__main__" in path.read_text()]
    assert len(scripts) > 10
    for path in scripts:
        if path.name != "install_detectron2.py":  # runs before torch is installed
            assert first_import(path) == "import _root", path.name


def test_a_command_sets_how_threads_wait_before_it_loads_torch():
    for name in ("main.py", "preprocess.py"):
        assert "runtime.openmp" in first_import(REPOSITORY / name), name


def test_no_test_module_imports_another():
    tests = sorted(REPOSITORY.glob("tests/**/*.py"))
    stems = {path.stem for path in tests if path.stem.startswith("test_")} | {"conftest"}
    imports = [(path.name, name) for path in tests for name in imported_names(path, "tests")]
    assert [pair for pair in imports if pair[1].removeprefix("tests.").split(".")[0] in stems] == []


@pytest.mark.parametrize(
    ("file", "source", "forbidden"),
    [
        ("modeling/criterion.py", "def f():\n    import numpy as np", "numpy"),
        ("modeling/vitmatte.py", "from .detail_capture import DetailCapture", "modeling.detail_capture.DetailCapture"),
        ("modeling/backbone/attention.py", "from . import block", "modeling.backbone.block"),
        ("modeling/backbone/block.py", "from ..criterion import Loss", "modeling.criterion.Loss"),
        ("data/datasets/mixture.py", "from modeling import ViTMatte", "modeling.ViTMatte"),
        ("data/augment/warp.py", "from data.datasets import mixture", "data.datasets.mixture"),
        ("evaluation/metrics.py", "import data", "data"),
        ("inference/formats/model_folder.py", "import omegaconf", "omegaconf"),
        ("inference/predictor.py", "if TYPE_CHECKING:\n    from detectron2.config import CfgNode",
         "detectron2.config.CfgNode"),
        ("engine/distributed/launch.py", "from engine.checkpoint import file", "engine.checkpoint.file"),
        ("engine/trainer.py", "from tests.conftest import SHARED", "tests.conftest.SHARED"),
        ("configs/demo.py", "from inference.predictor import Predictor", "inference.predictor.Predictor"),
        ("main.py", "from modeling import ViTMatte", "modeling.ViTMatte"),
        ("tools/runs/demo.py", "from configs.common.train import train", "configs.common.train.train"),
        ("tools/runs/demo.py", "import evaluate", "evaluate"),
        ("tools/runs/demo.py", "from tools.benchmarks import fresh", "tools.benchmarks.fresh"),
        ("tools/runs/install_detectron2.py", "import torch", "torch"),
        ("modeling/backbone/__init__.py", "from modeling.backbone.vit import ViT", None),
        ("modeling/backbone/vit.py", "import math\nimport torch.nn.functional as F\nfrom .block import Block", None),
        ("inference/predictor.py", "from data import image_io, trimap", None),
        ("tools/train_demo.py", "import _root\nimport skimage\nfrom evaluation.evaluator import Evaluator", None),
        ("tools/benchmarks/infer.py", "from tools.benchmarks.fresh import run_fresh", None),
        ("helpers.py", "", "(the module is not in the table)"),
    ],
)  # fmt: skip
def test_the_table_decides_on_an_import(tmp_path, file, source, forbidden):
    packages = ("configs/__init__", "main", "tools/evaluate", "modeling/__init__", "data/__init__", "engine/__init__")
    for path in [*(Path(tmp_path, name + ".py") for name in packages), tmp_path / file]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / file).write_text(source)
    module = file.removesuffix(".py").replace("/", ".")
    assert forbidden_imports(tmp_path) == ([f"{module} -> {forbidden}"] if forbidden else [])
