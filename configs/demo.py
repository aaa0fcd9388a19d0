"""A tiny network on generated data, on the CPU, in minutes: what `make demo` trains.

Purpose: show that everything works, from data to picture sheet; its numbers say nothing about real images.
Command: python main.py --config-file configs/demo.py (after tools/make_demo_data.py; `make demo` does both)
Cost:    to be measured.
Result:  to be measured.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/demo/train"
train.device = "cpu"
train.epochs = 1
train.samples_per_epoch = 3200
train.warmup_samples = 160
train.epochs_per_checkpoint = 1
model.backbone.embed_dim = 128
model.backbone.depth = 4
model.backbone.num_heads = 2
model.backbone.window_size = 7
model.backbone.global_block_indexes = [1, 3]
model.decoder.convstream_chans = [16, 32, 64]
model.decoder.fusion_chans = [64, 48, 32, 16]
dataloader.train.batch_size = 8
dataloader.train.dataset.crop_px = 160
dataloader.train.dataset.foreground_dirs = ["output/demo/data/train/foregrounds"]
dataloader.train.dataset.alpha_dirs = None
dataloader.train.dataset.background_dirs = ["output/demo/data/train/backgrounds"]
dataloader.test.dataset.image_dir = "output/demo/data/test/images"
dataloader.test.dataset.trimap_dir = "output/demo/data/test/trimaps"
dataloader.test.dataset.alpha_dir = "output/demo/data/test/alphas"
