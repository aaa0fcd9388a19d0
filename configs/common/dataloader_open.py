"""The set of tools/make_open_dataset.py: foregrounds in three shares over free photographs, and a held-out test set."""

from detectron2.config import LazyCall as L

from data.datasets.composition import CompositionDataset
from data.datasets.mixture import MixtureDataset

from .dataloader import dataloader

dataloader.folder = "datasets/open"
hairy = dataloader.train.dataset
hairy.foreground_dirs = [f"${{dataloader.folder}}/train/rgba/drawn_{kind}_*" for kind in ("hair", "fur", "feathers")]
hairy.alpha_dirs = None
hairy.background_dirs = ["${dataloader.folder}/train/backgrounds"]
hairy.merge_probability = 0.2
hairy.crop.rotation_min_px = 0
hairy.trimap.radius_px = [1, 25]  # up to a twentieth of the crop
hairy.tones.white_balance = 1.15
hairy.degradation.blur_probability = 0.2
hairy.degradation.noise_probability = 0.15
hairy.degradation.jpeg_probability = 0.2
cutouts, others = ({key: f"${{..hairy.{key}}}" for key in hairy if key != "_target_"} for _ in range(2))
cutouts |= dict(seed=1, foreground_dirs=[f"${{dataloader.folder}}/train/rgba/{of}_*" for of in ("tuxpaint", "lobehub")])
kinds = ("foliage", "lace", "glass", "smoke", "drops")
others |= dict(seed=2, foreground_dirs=[f"${{dataloader.folder}}/train/rgba/drawn_{kind}_*" for kind in kinds])
# Most photographs show solid or hairy things. With equal shares, most kinds would be translucent or full of holes, and
# two thirds of each crop unknown.
dataloader.train.dataset = L(MixtureDataset)(
    weights=dict(hairy=0.45, cutouts=0.35, others=0.2),
    samples_per_epoch="${train.samples_per_epoch}",
    hairy=hairy,
    cutouts=L(CompositionDataset)(**cutouts),
    others=L(CompositionDataset)(**others),
)
dataloader.test.dataset.image_dir = "${dataloader.folder}/test/image"
dataloader.test.dataset.trimap_dir = "${dataloader.folder}/test/trimap"
dataloader.test.dataset.alpha_dir = "${dataloader.folder}/test/alpha"
