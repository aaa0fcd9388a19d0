"""Training runs of a tiny ViTMatte in float64, sharded or not."""

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from engine.checkpoint.file import Checkpointer
from engine.checkpoint.sharded import ShardedCheckpointer
from engine.distributed.batch_norm import set_batch_norm
from engine.distributed.fsdp import gathered_weights, is_sharded, shard
from engine.distributed.launch import distribute
from engine.ema import Ema
from engine.hooks.checkpoint import PeriodicCheckpointer
from engine.optimizer import build_adamw
from engine.trainer import Trainer
from modeling.lr_groups import get_optimizer_params
from tests.helpers.networks import tiny_trainable
from tests.helpers.toy_training import Stream

CLIP_NORM = 0.02

NUM_STEPS = 20


class NumberedImages(Dataset):
    """Position -> a small image with its trimap and alpha, in float64; unknown areas differ."""

    def __getitem__(self, position):
        generator = torch.Generator().manual_seed(position)
        image, alpha = (torch.rand(chans, 64, 64, generator=generator, dtype=torch.float64) for chans in (3, 1))
        trimap = torch.randint(0, 3, (1, 64, 64), generator=generator) / 2.0
        trimap[:, 8 + 8 * (position % 7) :] = 0.0
        return {"image": image, "trimap": trimap.double(), "alpha": alpha}


def build():
    """A network with frozen parts that recomputes its blocks."""
    model = set_batch_norm(tiny_trainable(), "frozen", "cpu")
    model.backbone.use_activation_checkpointing = True
    model.backbone.patch_embed.requires_grad_(False)
    return model


def build_sharded():
    """The same network and its average on `meta`, then sharded with the values of the main process."""
    with torch.device("meta"):
        model = build()
    ema = Ema(model, 0.9)
    source = build() if comm.is_main_process() else None
    for network in (model, ema.module):
        shard(network, "backbone.blocks", "cpu", source)
    return model, ema


def start(folder, is_to_be_sharded, batch_size=1, precision="float32"):
    """Trainer and checkpointer of a training run with layer-wise rates, clipping, an average ..."""
    folder.mkdir(exist_ok=True)
    if is_to_be_sharded and comm.get_world_size() > 1:
        model, ema = build_sharded()
    else:
        model = build()
        ema = Ema(model, 0.9)
    optimizer = build_adamw(get_optimizer_params(model, 3e-3, 0.1, 0.65, 2, 5.0), 3e-3, (0.9, 0.999), 0.1)
    loader = DataLoader(
        NumberedImages(), batch_size, sampler=Stream(batch_size, comm.get_rank(), comm.get_world_size())
    )
    wrapped = model if is_sharded(model) else distribute(model)
    trainer = Trainer(wrapped, loader, optimizer, precision, accumulation=2, clip_norm=CLIP_NORM, ema=ema)
    kind = ShardedCheckpointer if is_to_be_sharded else Checkpointer
    checkpointer = kind(model, str(folder), trainer=trainer, ema=ema)
    trainer.register_hooks([PeriodicCheckpointer(checkpointer, NUM_STEPS // 2)])
    return trainer, checkpointer


def finish(trainer, to=NUM_STEPS):
    """Train to the end; give losses, norms, weights and averaged weights, whole."""
    trainer.train(trainer.next_iteration, to)
    series = {name: trainer.storage.history(name).values() for name in ("total_loss", "grad_norm")}
    return {
        "losses": [loss for loss, _ in series["total_loss"]],
        "norms": [norm for norm, _ in series["grad_norm"]],
        "weights": gathered_weights(trainer.bare_model),
        "average": gathered_weights(trainer.ema.module),
    }


class SumPredictions(DatasetEvaluator):
    """The sum of each image's predictions, over all processes."""

    def reset(self):
        self.sums = {}

    def process(self, inputs, outputs):
        name = f"picture {inputs['position'].item()}"
        assert name not in self.sums
        self.sums[name] = outputs["pred_alpha"].sum().item()

    def evaluate(self):
        return {"sums": {key: value for part in comm.all_gather(self.sums) for key, value in part.items()}}


class FiniteNumberedImages(NumberedImages):
    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, position):
        return {**super().__getitem__(position), "position": position}
