r"""ViTMatte-S as published, 100 epochs of Composition-1k.

Purpose: the baseline that DINOv3 is compared with: ViTMatte's backbone, losses and schedule. Compared with
         ViTMatte_S_100ep.py: multipliers 1, 0.1 and 0.05 from epochs 30 and 90 on, a warm-up of 250 iterations, the
         decoder at the backbone's base rate, areas of the losses pooled over each forward pass.
Differs: the authors' code also decays the necks' LayerNorms and all biases of linear layers, patch embedding and
         head, and evaluates with model.padding=zero_hustvl.
Batch:   the authors' is 32, 16 on each of 2 GPUs, as ours; 250 iterations of warm-up are 8000 crops in both.
Command: python main.py --config-file configs/ViTMatte_S_original.py --num-gpus 2 train.init_checkpoint=FILE
         FILE: what preprocess.py makes of DINO's or MAE's weights (docs/convert.md; the authors start S from DINO);
         without it, training starts from random weights.
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured; the authors report SAD 21.46, MSE 3.3e-3, Grad 7.24, Conn 16.21.
"""

from .common.dataloader import dataloader
from .common.model_vitdet import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_original"
train.epochs = 100
train.warmup_samples = 8_000
train.init_checkpoint_may_lack = ["decoder.", ".residual.", ".rel_pos_"]
model.criterion.area = "batch"
optimizer.params.decoder_lr_factor = 1.0
lr_multiplier.scheduler.values = [1.0, 0.1, 0.05]
lr_multiplier.scheduler.milestones = "${milestones:${train.max_iter},0.3,0.9}"
