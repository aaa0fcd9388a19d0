"""Composition-1k: training composites made on the fly over COCO train2017, and its 1000 test images."""

from detectron2.config import LazyCall as L

from data.augment.degradation import DegradeImage
from data.augment.random_crop import DrawView
from data.augment.tone_jitter import JitterTones
from data.augment.transforms import JitterColour, MakeTrimap
from data.datasets.composition import CompositionDataset, MattingFolder
from data.loader.build import build_test_loader, build_train_loader
from evaluation.evaluator import MattingEvaluator
from inference.network import TiledEvaluation
from modeling.test_time_augmentation import AverageViews

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(CompositionDataset)(
            foreground_dirs=["${oc.env:DETECTRON2_DATASETS,datasets}/Composition-1k/train/fg"],
            alpha_dirs=["${oc.env:DETECTRON2_DATASETS,datasets}/Composition-1k/train/alpha"],
            background_dirs=["${oc.env:DETECTRON2_DATASETS,datasets}/train2017"],
            samples_per_epoch="${train.samples_per_epoch}",
            crop_px=512,
            seed="${train.seed}",
            # Augmentations of the GCA line, described in CompositionDataset
            merge_probability=0.5,
            crop=L(DrawView)(
                square_probability=0.25,
                square_px=640,
                rotation_deg=30.0,
                rotation_min_px=1024,
                scale_range=[0.8, 1.25],
                shear_deg=10.0,
                flip_probability=0.5,
                crop_factors=[1.0, 1.5, 2.0],
                max_enlargement=2.0,
            ),
            # reference_px=512: the radii grow with crops above 512 px
            trimap=L(MakeTrimap)(radius_px=[0, 14], reference_px=None),
            colour=L(JitterColour)(hue_deg=40.0, jitter_share=0.1),
            # Augmentation options, all off; see docs/augmentation.md.
            estimates_foreground=False,
            tones=L(JitterTones)(gamma=1.0, white_balance=1.0),
            degradation=L(DegradeImage)(
                blur_probability=0.0,
                blur_sigma_px=[0.3, 1.2],
                noise_probability=0.0,
                noise_sigma=[0.5, 4.0],
                shot_noise_sigma=[0.0, 6.0],
                jpeg_probability=0.0,
                jpeg_quality=[50, 95],
            ),
        ),
        # per GPU
        batch_size=16,
        num_workers=2,
        # Batches that each worker prepares, 84 MB each at 16 x 512 px
        prefetch_factor=2,
        # Samples that cannot be read: "replace" or "raise"
        on_fault="replace",
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(MattingFolder)(
            image_dir="${oc.env:DETECTRON2_DATASETS,datasets}/Composition-1k/test/merged",
            trimap_dir="${oc.env:DETECTRON2_DATASETS,datasets}/Composition-1k/test/trimaps",
            alpha_dir="${oc.env:DETECTRON2_DATASETS,datasets}/Composition-1k/test/alpha_copy",
        ),
        num_workers=2,
    ),
    evaluator=L(MattingEvaluator)(output_dir=None, protocol="dim"),
    # Evaluations run the decoder on tiles of this size, as tools/evaluate.py does. null: on the complete image, which
    # takes far more memory.
    test_network=L(TiledEvaluation)(tile_px=256),
    # Test-time augmentation of --eval-only. Each version of an image is one more forward pass.
    test_views=L(AverageViews)(flips=False, rotations=False, scales=[1.0]),
)
