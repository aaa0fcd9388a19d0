"""Published weights as initial checkpoints: reading their files, finding the network in them, renaming its tensors."""

from modeling.conversion.checkpoint_files import choose_file, read_checkpoint
from modeling.conversion.convert import Conversion, check_fit, convert
from modeling.conversion.copies import Copy, take_copy
from modeling.conversion.errors import ConversionError

__all__ = [
    "Conversion",
    "ConversionError",
    "Copy",
    "check_fit",
    "choose_file",
    "convert",
    "read_checkpoint",
    "take_copy",
]
