"""Running `.py` configs, whose own mistakes become one line with their place."""

import traceback
from pathlib import Path
from types import FrameType

import detectron2.config.lazy
from detectron2.config import LazyConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runtime.errors import UserError, one_line


def run_config(path: Path) -> DictConfig:
    """Run a `.py` config, and the configs that it imports by relative imports.

    Returns: its sections: what it assigns that is a dict or a LazyCall.

    Raises:
        UserError: a config is not Python, or raises an error itself: one with its file and line. An error that comes
            from deeper inside, out of a module that a config imports or calls, is raised as it is.
    """
    try:
        path.read_text(encoding="utf-8")
        return LazyConfig.load(str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not Python: {error}") from error
    except SyntaxError as error:
        # detectron2's error names the file, its cause the line; one of the compiler itself names both.
        raise UserError(": ".join(str(part) for part in (error, error.__cause__) if part)) from error
    except Exception as error:  # whatever a user's code raises; all but its own mistakes go on
        place = _place_in_config(error, path)
        if place is None:
            raise
        reason = one_line(error)
        raise UserError(f"{place}: {type(error).__name__}{reason and ': '}{reason}") from error


def _place_in_config(error: Exception, path: Path) -> str | None:
    """Say which line of a config raised an error; None where it comes from deeper inside.

    detectron2's import of configs, and omegaconf's checks of what is assigned, count as the line that asks for them.
    """
    calls = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    configs = [index for index, (frame, _) in enumerate(calls) if _is_config(frame, path)]
    if not configs:
        return None
    deeper = {frame.f_code.co_filename for frame, _ in calls[configs[-1] + 1 :]}
    if deeper - {detectron2.config.lazy.__file__} and not isinstance(error, OmegaConfBaseException):
        return None
    frame, line = calls[configs[-1]]
    return f"{frame.f_code.co_filename}, line {line}"


def _is_config(frame: FrameType, path: Path) -> bool:
    """Tell whether a frame runs a config's code, which detectron2 executes outside of Python's modules."""
    package = frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or ""
    return frame.f_code.co_filename == str(path) or package.startswith("detectron2._cfg_loader")
