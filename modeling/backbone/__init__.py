"""Backbones: networks that turn RGB and trimap into one feature map."""

from modeling.backbone.dinov3 import DINOV3_SIZES
from modeling.backbone.vit import ViT
from modeling.backbone.vitdet import ViTDet

__all__ = ["DINOV3_SIZES", "ViT", "ViTDet"]
