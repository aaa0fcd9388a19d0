r"""ViTMatte-S as published, 100 epochs of Composition-1k.

Purpose: the baseline that DINOv3 is compared with: another backbone in the recipe of ViTMatte_S_100ep.py.
Command: python main.py --config-file configs/ViTMatte_S_original.py --num-gpus 2 train.init_checkpoint=FILE
         FILE: {"model": backbone weights under detectron2's names, each behind "backbone.", with 4 input channels};
         without it, training starts from random weights (the authors start from DINO).
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
train.init_checkpoint_may_lack = ["decoder.", ".residual.", ".rel_pos_"]
