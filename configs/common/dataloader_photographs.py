"""Photographs with their own alphas, and a test set of the same kind, in one folder."""

from detectron2.config import LazyCall as L

from data.datasets.photographs import DrawInnerView, RealImageDataset

from .dataloader import dataloader

# It has image/ and alpha/, matched by name, and for held-out images test/image/, test/trimap/ and test/alpha/.
dataloader.folder = "datasets/mine"
dataloader.train.dataset = L(RealImageDataset)(
    image_dirs=["${dataloader.folder}/image"],
    alpha_dirs=["${dataloader.folder}/alpha"],
    samples_per_epoch="${train.samples_per_epoch}",
    crop_px=512,
    seed="${train.seed}",
    crop=L(DrawInnerView)(
        square_probability=0.25,
        square_px=640,
        rotation_deg=30.0,
        rotation_min_px=0,
        scale_range=[0.8, 1.25],
        shear_deg=10.0,
        flip_probability=0.5,
        crop_factors=[1.0, 1.5, 2.0],
        max_enlargement=2.0,
    ),
    trimap=dataloader.train.dataset.trimap,
    colour=dataloader.train.dataset.colour,
    degradation=dataloader.train.dataset.degradation,
)
dataloader.test.dataset.image_dir = "${dataloader.folder}/test/image"
dataloader.test.dataset.trimap_dir = "${dataloader.folder}/test/trimap"
dataloader.test.dataset.alpha_dir = "${dataloader.folder}/test/alpha"
