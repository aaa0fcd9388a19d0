"""The network that this project ships, and whether tools/predict.py uses it by default."""

from pathlib import Path

from runtime.errors import UserError

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "open"
"""Its model folder in the repository."""

IS_DEFAULT = False
"""Whether tools/predict.py uses it without --model. Otherwise it takes closed-form matting; see MODEL_CARD.md there."""


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
    """Return the model folder that tools/predict.py uses without --model; None is closed-form matting."""
    return SHIPPED if IS_DEFAULT and SHIPPED.is_dir() else None
