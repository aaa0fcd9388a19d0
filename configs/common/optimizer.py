"""AdamW with layer-wise learning-rate decay over the backbone's depth and a faster decoder."""

from detectron2.config import LazyCall as L

from engine.optimizer import build_adamw
from modeling.lr_groups import get_optimizer_params

optimizer = L(build_adamw)(
    params=L(get_optimizer_params)(
        model=None,  # main.py puts the model here
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        lr_decay_rate=0.65,
        num_layers="${model.backbone.depth}",
        decoder_lr_factor=5.0,
        pretrained_start="${warmup_fraction:${train.decoder_warmup_samples},${dataloader.train.batch_size},"
        "${train.world_size},${train.max_iter},${train.accumulation}}",
    ),
    lr=5e-4,
    betas=[0.9, 0.999],
    weight_decay=0.1,
    fused=True,
)
