r"""ViTMatte-S as published, 100 epochs of Composition-1k.

Purpose: the baseline for DINOv3, with ViTMatte's backbone, losses and schedule. Unlike ViTMatte_S_100ep.py, it has
         multipliers 1, 0.1 and 0.05 from epochs 30 and 90 on, and a warm-up of 250 iterations. The decoder has the
         backbone's base rate. Areas of the losses are pooled over each forward pass.
Differs: the authors' code applies weight decay also to the necks' LayerNorms, and to all biases of linear layers,
         patch embedding and head. It evaluates with model.padding=zero_hustvl.
Batch:   32 (16 on each of 2 GPUs), as the authors'. 250 iterations of warm-up are 8000 crops.
Command: python main.py --config-file configs/ViTMatte_S_original.py --num-gpus 2 train.init_checkpoint=FILE
         FILE: made by preprocess.py from weights of DINO or MAE (docs/convert.md). The authors start S from DINO.
         Without it, training starts from random weights.
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
