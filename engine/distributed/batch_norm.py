"""BatchNorm's other kinds: frozen, and synchronised over the processes, on the CPU as well."""

import torch
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

from runtime.errors import ConfigError

KINDS = ("own", "sync", "frozen")


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that stays in evaluation mode and is not trained, with the names of tensors that BatchNorm2d has."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        super().train(False)
        return self


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, where torch's `SyncBatchNorm` takes CUDA tensors alone.

    The variance is summed around the common mean, so that nothing cancels. Like BatchNorm2d in everything else, in the
    statistics' unbiased variance too.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); every process has to call it, with B, H and W of its own."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        values = x.to(dtype)
        count = values.new_tensor([values.numel() // values.shape[1]])
        *sums, total = differentiable_all_reduce(torch.cat((values.sum(dim=(0, 2, 3)), count))).split(values.shape[1])
        mean = sums[0] / total
        deviation = values - mean[:, None, None]
        variance = differentiable_all_reduce(deviation.square().sum(dim=(0, 2, 3))) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                unbiased = variance * total / (total - 1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (deviation * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def set_batch_norm(model: nn.Module, kind: str, device: str) -> nn.Module:
    """Replace each BatchNorm of a network by another kind; the names of its tensors and the tensors stay.

    Args:
        model: not wrapped for several processes; its children are replaced in place.
        kind: "own", each process's batch by itself; "sync", the batches of all processes; "frozen", the statistics that
            were loaded, which are not trained and neither are factors and shifts.
        device: that the model will train on, where it is not there yet.

    Returns: the model.

    Raises:
        ConfigError: for another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"train.batch_norm must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "sync" and torch.device(device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if kind != "own":
        _replace(model, FrozenBatchNorm2d if kind == "frozen" else CpuSyncBatchNorm2d)
    return model


def _replace(module: nn.Module, kind: type[nn.BatchNorm2d]) -> None:
    for name, child in module.named_children():
        _replace(child, kind)
        if isinstance(child, nn.BatchNorm2d):
            other = kind(child.num_features, child.eps, child.momentum).train(child.training)
            for tensor_name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(other, tensor_name, getattr(child, tensor_name))
            setattr(module, name, other)
            if kind is FrozenBatchNorm2d:
                other.requires_grad_(False)
