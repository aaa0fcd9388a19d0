"""The network that this project ships: what tools/predict.py and `Predictor.load` use by default."""

from pathlib import Path

from runtime.errors import UserError

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "open"
"""Its model folder in the repository."""


def shipped_network() -> Path:
    """Return the model folder of the shipped network.

    Raises:
        UserError: this copy of the repository has none.
    """
    if not SHIPPED.is_dir():
        raise UserError(
            f"{SHIPPED} is not there, so no network is shipped with this copy: name a model folder, which "
            "tools/export.py makes"
        )
    return SHIPPED


def default_network() -> Path | None:
    """Return the shipped network; None, for closed-form matting, where this copy of the repository has none."""
    return SHIPPED if SHIPPED.is_dir() else None
