"""The error of weights that cannot be converted."""

from runtime.errors import UserError


class ConversionError(UserError):
    """The input cannot be read, is no network of a known kind, or cannot be converted without loss."""
