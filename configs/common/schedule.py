"""Learning-rate multiplier: linear warm-up, then 1, then 0.5 after 80 % and 0.2 after 95 % of the run.

With 10 epochs the steps are at epochs 8 and 9.5, as published; with 100 epochs at 80 and 95. For a cosine to 0:
lr_multiplier.scheduler.kind=cosine
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler

from engine.config.epochs import build_decay  # its module registers the resolvers used here

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(build_decay)(
        kind="steps",
        values=[1.0, 0.5, 0.2],
        milestones="${milestones:${train.max_iter},0.8,0.95}",
        num_updates="${train.max_iter}",
        end_value=0.0,
    ),
    warmup_length="${warmup_fraction:${train.warmup_samples},${dataloader.train.batch_size},${train.world_size},"
    "${train.max_iter},${train.accumulation}}",
    warmup_factor=0.001,
)
