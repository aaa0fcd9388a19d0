r"""ViT-S/16, 100 epochs of Composition-1k.

Purpose: the small model, trained for the full 100 epochs. The learning rate drops at epochs 80 and 95.
Command: python preprocess.py --checkpoint dinov3_vits16_pretrain.pth --keep-prefix \
             --output checkpoints/dinov3_vits16_4ch_prefix.pth
         python main.py --config-file configs/ViTMatte_S_100ep.py --num-gpus 2
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_100ep"
train.init_checkpoint = "checkpoints/dinov3_vits16_4ch_prefix.pth"
train.epochs = 100
