"""Write the model card of a network: the page that a repository on the Hugging Face hub shows."""

from pathlib import Path
from typing import Any

from inference.formats.model_folder import LICENSE_FILE
from inference.formats.published_vitmatte import is_published
from runtime.network_files import CONFIG_FILE, WEIGHTS_FILE, read_json

CARD_FILE = "README.md"
"""Its name on the hub."""

OWN_CARDS = ("MODEL_CARD.md", CARD_FILE)
"""Files of a folder that become its card, the first one that exists."""

TRANSFORMERS = """
With transformers:

```python
from transformers import VitMatteForImageMatting, VitMatteImageProcessor

processor = VitMatteImageProcessor.from_pretrained("{repository}")
model = VitMatteForImageMatting.from_pretrained("{repository}")
```
"""

BODY = """# {name}

An image matting network, a [ViTMatte](https://arxiv.org/abs/2305.15272). It predicts alpha, the opacity of the subject,
from an image and a trimap.

- Source: {source}
- Backbone: {backbone}, {depth} blocks, {width} wide, patches of {patch_px} px
- Parameters: {millions:.1f} million
- Weights: `{weights}`, {megabytes:.1f} MB

## Use

In a checkout of DINOv3-ViTMatte:

```
python tools/predict.py photo.jpg --trimap trimap.png --model {repository} --output alpha.png
```

```python
from inference.predictor import Predictor

alpha = Predictor.load("{repository}").predict("photo.jpg", "trimap.png")  # (H, W) float32 in [0, 1]
```
{transformers}
## Licence

{licence}
"""


def model_card(folder: Path, repository: str, model: Any) -> str:
    """Return the model card of a folder, in Markdown with a YAML head.

    A file of `OWN_CARDS` in the folder is the card. If it has no YAML head, one is added.

    Args:
        folder: model folder, or transformers folder of ViTMatte.
        repository: OWNER/NAME, for the examples.
        model: the folder's `ViTMatte`.

    Raises:
        OSError, UserError: a file of the folder cannot be read.
    """
    licence, is_transformers = folder / LICENSE_FILE, is_published(folder)
    head = _head(licence.is_file(), is_transformers)
    for own in (folder / name for name in OWN_CARDS):
        if own.is_file():
            text = own.read_text(encoding="utf-8")
            return text if text.startswith("---\n") else f"{head}\n{text}"
    backbone, weights = model.backbone, folder / WEIGHTS_FILE
    body = BODY.format(
        name=repository.partition("/")[2],
        source=read_json(folder / CONFIG_FILE).get("source", "not stated"),
        backbone=type(backbone).__name__,
        depth=len(backbone.blocks),
        width=backbone.embed_dim,
        patch_px=backbone.patch_embed.patch_size,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        weights=weights.name,
        megabytes=weights.stat().st_size / 1e6,
        repository=repository,
        transformers=TRANSFORMERS.format(repository=repository) if is_transformers else "",
        licence=licence.read_text(encoding="utf-8").strip() if licence.is_file() else "The folder states no terms.",
    )
    return f"{head}\n{body}"


def _head(has_licence: bool, is_transformers: bool) -> str:
    """Return the YAML head by which the hub sorts and labels a repository."""
    lines = ["license: unknown"]
    if has_licence:
        lines = ["license: other", "license_name: see-license-file", f"license_link: {LICENSE_FILE}"]
    lines += ["library_name: transformers"] * is_transformers
    lines += ["pipeline_tag: image-segmentation", "tags:", "- image-matting", "- vitmatte"]
    return "\n".join(["---", *lines, "---", ""])
