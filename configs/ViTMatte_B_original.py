r"""ViTMatte-B as published, 100 epochs of Composition-1k.

Purpose: the baseline that DINOv3 is compared with: another backbone in the recipe of ViTMatte_B_100ep.py.
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
train.init_checkpoint_may_lack = ["decoder.", ".residual.", ".rel_pos_"]
model.backbone.embed_dim = 768
model.backbone.num_heads = 12
optimizer.params.lr_decay_rate = 0.7
