"""A tiny network on generated data, on the CPU, in minutes: what `make demo` trains.

Purpose: show that everything works, from data to image sheet. Its figures say nothing about real images.
Command: make demo (tools/runs/demo.py makes the data and the initial checkpoint, then trains this config)
Cost:    about 4 minutes on two CPU cores.
Result:  the table of synthetic composites in docs/results.md.
"""

from .common.dataloader import dataloader
from .common.model import model
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier
from .common.train import train

train.output_dir = "output/demo"
train.init_checkpoint = "${.output_dir}/dinov3_tiny_4ch.pth"
train.epochs = 1
train.samples_per_epoch = 8000
train.warmup_samples = 240
model.backbone.embed_dim = 96
model.backbone.depth = 4
model.backbone.num_heads = 3
model.backbone.layer_scale_init = 0.5
model.backbone.window_size = 4
model.backbone.global_block_indexes = [1, 3]
model.decoder.convstream_chans = [16, 32, 48]
model.decoder.fusion_chans = [64, 48, 32, 16]
optimizer.lr = 2e-3
optimizer.params.lr_decay_rate = 1.0
optimizer.params.decoder_lr_factor = 1.0
lr_multiplier.scheduler.values = [1.0, 0.3, 0.1]
lr_multiplier.scheduler.milestones = "${milestones:${train.max_iter},0.6,0.85}"
dataloader.train.batch_size = 8
dataloader.train.dataset.crop_px = 128
dataloader.train.dataset.foreground_dirs = ["${train.output_dir}/data/train/rgba"]
dataloader.train.dataset.alpha_dirs = None
dataloader.train.dataset.background_dirs = ["${train.output_dir}/data/train/backgrounds"]
dataloader.test.dataset.image_dir = "${train.output_dir}/data/test/image"
dataloader.test.dataset.trimap_dir = "${train.output_dir}/data/test/trimap"
dataloader.test.dataset.alpha_dir = "${train.output_dir}/data/test/alpha"
