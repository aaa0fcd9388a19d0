r"""ViT-S/16, 10 epochs of Composition-1k: the report's recipe, with its exact numbers.

Purpose: reproduce the report. It drops the prefix tokens, and pools the areas of the losses over each forward pass.
         All its other numbers are those of configs/common.
Command: python preprocess.py --checkpoint dinov3_vits16_pretrain.pth \
             --output checkpoints/dinov3_vits16_4ch.pth
         python main.py --config-file configs/ViTMatte_S_10ep.py --num-gpus 2
Cost:    13470 iterations of 32 crops of 512 px; time to be measured.
Result:  reported SAD 29.28, MSE 6.10e-3 (Composition-1k, unknown region); ours to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_10ep"
train.init_checkpoint = "checkpoints/dinov3_vits16_4ch.pth"
model.backbone.keep_prefix_tokens = False
model.criterion.area = "batch"
