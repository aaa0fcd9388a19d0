"""Backbones: networks that turn RGB and trimap into one feature map."""

from modeling.backbone.dinov2 import DINOv2
from modeling.backbone.sizes import DINOV2_SIZES, DINOV3_SIZES
from modeling.backbone.vit import ViT
from modeling.backbone.vitdet import ViTDet

__all__ = ["DINOV2_SIZES", "DINOV3_SIZES", "DINOv2", "ViT", "ViTDet"]
