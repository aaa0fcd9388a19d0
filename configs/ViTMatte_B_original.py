r"""ViTMatte-B as published, 100 epochs of Composition-1k.

Purpose: the baseline for DINOv3, with ViTMatte's backbone, losses and schedule. Unlike ViTMatte_B_100ep.py, it has
         multipliers 1, 0.1 and 0.05 from epochs 30 and 90 on, and a warm-up of 250 iterations. The decoder has the
         backbone's base rate. Areas of the losses are pooled over each forward pass.
Differs: the authors' code applies weight decay also to the necks' LayerNorms, and to all biases of linear layers,
         patch embedding and head. It evaluates with model.padding=zero_hustvl.
Batch:   ours is 32 (16 on each of 2 GPUs). The authors' is 20 (10 on each of 2 GPUs), as we read the paper; their
         code was not available. For theirs: dataloader.train.batch_size=10 train.warmup_samples=5000.
Command: python main.py --config-file configs/ViTMatte_B_original.py --num-gpus 2 train.init_checkpoint=FILE
         FILE: as for ViTMatte_S_original.py.
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured; the authors report SAD 20.33, MSE 3.0e-3, Grad 6.74, Conn 14.78.
"""

from .common.dataloader import dataloader
from .common.model_vitdet import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_B_original"
train.epochs = 100
train.warmup_samples = 8_000
train.init_checkpoint_may_lack = ["decoder.", ".residual.", ".rel_pos_"]
model.backbone.embed_dim = 768
model.backbone.num_heads = 12
optimizer.params.lr_decay_rate = 0.7
model.criterion.area = "batch"
optimizer.params.decoder_lr_factor = 1.0
lr_multiplier.scheduler.values = [1.0, 0.1, 0.05]
lr_multiplier.scheduler.milestones = "${milestones:${train.max_iter},0.3,0.9}"
