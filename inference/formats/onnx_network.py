"""Run an exported ONNX file by onnxruntime."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from inference.network import decode_inputs
from runtime.errors import ConfigError, UserError, first_line
from runtime.optional_packages import import_extra, session_options

INPUTS, OUTPUT = ("image", "trimap"), "alpha"

INTERFACE = {"image": [None, 3, None, None], "trimap": [None, 1, None, None], "alpha": [None, 1, None, None]}
"""Name of an input or the output -> its shape; None is any number."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxNetwork:
    """Predict alpha by a network in an ONNX file, untiled, in float32. Several threads may share one.

    It uses as many threads as torch has when it is made.

    Args:
        path: of the file.
        device: "cpu", "cuda" or "cuda:1" ...; "auto" is cuda if this onnxruntime can use it, else cpu.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        FileNotFoundError: there is no such file.
        UserError: no ONNX file, or none that tools/export.py wrote; no such device.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        runtime = import_extra("onnxruntime", "an .onnx file")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such .onnx file; export a network to it first")
        wanted = choose_providers(device, runtime.get_available_providers())
        state = runtime.capi.onnxruntime_pybind11_state
        self._run_errors = (state.Fail, state.RuntimeException)
        unreadable = (state.InvalidProtobuf, state.InvalidArgument, state.InvalidGraph, state.NotImplemented)
        try:
            self.session = open_session(runtime, self.path, wanted)
        except (*unreadable, *self._run_errors) as error:
            raise UserError(f"{path} is damaged or no ONNX file ({first_line(error)}): export it again") from error
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        shapes = {value.name: [size if isinstance(size, int) else None for size in value.shape] for value in values}
        if shapes != INTERFACE or any(value.type != "tensor(float)" for value in values):
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in values)
            raise UserError(
                f"{path}: expected float32 image (B, 3, H, W), trimap (B, 1, H, W) and alpha (B, 1, H, W) of any size, "
                f"got {found}: export the network again"
            )
        used = self.session.get_providers()[0]
        if used == CPU and device.startswith("cuda"):
            raise ConfigError(
                f"device {device!r} cannot be used: onnxruntime does not find its CUDA libraries; try cpu"
            )
        self.name = f"onnxruntime, {'cpu' if used == CPU else 'cuda'}, float32"

    def alpha(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Predict alpha; known pixels are as in the trimap. See `inference.network.Network.alpha`.

        Returns: (B, 1, H, W) float32 in [0, 1], on the CPU.

        Raises:
            DataError: see `decode_inputs`.
            UserError: values are not finite, or onnxruntime stops, most likely for lack of memory.
        """
        inputs = image, decode_inputs(image, trimap)
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
        try:
            alpha = torch.from_numpy(self.session.run([OUTPUT], arrays)[0])
        except self._run_errors as error:
            height, width = image.shape[-2:]
            raise UserError(
                f"{self.path} stops at {width} x {height} px ({first_line(error)}): it takes images whole; a model "
                "folder takes them in tiles, in far less memory"
            ) from error
        if not alpha.isfinite().all():
            raise UserError("the network gives values that are not finite: its weights or settings cannot be used")
        return alpha


def open_session(onnxruntime: ModuleType, path: Path, providers: list[Any]) -> Any:
    """Open onnxruntime's `InferenceSession` of a file, by the rule of `session_options`."""
    options = session_options(onnxruntime)
    options.enable_cpu_mem_arena = False  # it would keep the largest amount of memory that any image took
    options.log_severity_level = 4  # errors come as exceptions
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def choose_providers(device: str, available: list[str]) -> list[Any]:
    """List the providers for an onnxruntime session, the preferred one first.

    Args:
        device: see `OnnxNetwork`.
        available: names of the providers in this build of onnxruntime.

    Raises:
        ConfigError: none of them is such a device.
    """
    kind, _, index = device.partition(":")
    if device == "cpu" or (device == "auto" and CUDA not in available):
        return [CPU]
    if kind not in ("auto", "cuda") or CUDA not in available or not (index or "0").isdecimal():
        raise ConfigError(
            f"device {device!r} cannot be used: an .onnx file runs on cpu, or on cuda by the package onnxruntime-gpu "
            f"(here: {', '.join(available)}); try cpu"
        )
    # TF32, onnxruntime's default there, would round factors to 10 bits.
    return [(CUDA, {"device_id": int(index or 0), "use_tf32": 0}), CPU]
