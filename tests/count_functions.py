"""Count the functions of this project that a command passes, by package.

    python tests/count_functions.py tools/predict.py photo.png --trimap trimap.png --model MODEL --output alpha.png
    python tests/count_functions.py main.py --config-file configs/demo.py

Run it from the repository's root; a copy of this file counts in any other commit. The second command needs the data
and the initial checkpoint that `make demo` writes to output/demo. It counts distinct pairs of file
and qualified name that the main process calls after the imports, without modules, lambdas, comprehensions and class
bodies. A training run ends after its first optimiser step.
"""

import os
import runpy
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path.cwd()
LEFT_OUT = ("<module>", "<lambda>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")

counted: set[tuple[str, str]] = set()


def our_file(code: CodeType) -> str:
    """Return a code object's path below the root, or "" outside of the project."""
    path = Path(code.co_filename)
    path = path if path.is_absolute() else ROOT / path
    is_ours = path.is_relative_to(ROOT) and not path.relative_to(ROOT).parts[0].startswith((".", "<"))
    return path.relative_to(ROOT).as_posix() if is_ours and path != Path(__file__) else ""


def is_importing(frame: FrameType | None) -> bool:
    """Tell whether a frame runs while a module is imported; the command itself runs as `__main__`."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
        frame = frame.f_back
    return False


def count(frame: FrameType, event: str, argument: Any) -> None:
    """Note a call; for `sys.setprofile`."""
    if event != "call" or not (file := our_file(frame.f_code)):
        return
    name = frame.f_code.co_qualname
    is_class_body = not frame.f_code.co_flags & 2  # CO_NEWLOCALS: functions have it, class bodies do not
    if frame.f_code.co_name not in LEFT_OUT and not is_class_body and not is_importing(frame):
        counted.add((file, name))


def report() -> None:
    """Print the number of functions and files by package."""
    sys.setprofile(None)
    packages = Counter(file.partition("/")[0] for file, _ in counted)
    for package, number in sorted(packages.items()):
        files = {file for file, _ in counted if file.partition("/")[0] == package}
        print(f"{package}: {number} functions in {len(files)} files")
    outside = sum(number for package, number in packages.items() if package != "modeling")
    num_files = len({file for file, _ in counted})
    print(f"all: {len(counted)} functions in {num_files} files; {outside} functions outside modeling", flush=True)


def end_after_step(*_: Any) -> None:
    """End the process after the first optimiser step."""
    report()
    os._exit(0)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[:0] = [str(ROOT / sys.argv[0]).rpartition("/")[0], str(ROOT)]
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(end_after_step)
    sys.setprofile(count)
    with suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    report()
