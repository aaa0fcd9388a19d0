"""The error class of weights that cannot be converted."""

from runtime.errors import UserError


class ConversionError(UserError):
    """The input cannot be read, is no known network, or cannot be converted without loss."""
