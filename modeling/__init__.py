"""The matting network: backbone, detail decoder, losses and the meta architecture that joins them."""

from modeling.criterion import MattingCriterion
from modeling.detail_capture import DetailCapture
from modeling.vitmatte import ViTMatte

__all__ = ["DetailCapture", "MattingCriterion", "ViTMatte"]
