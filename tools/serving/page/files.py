"""The files and the work of each browser session of the page."""

import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from numpy.typing import NDArray

UNUSED_S = 3600.0
"""Time after which the files of an unused session go."""

LEFT_S = 600.0
"""The same after the browser has disconnected. A phone does so in the background, and when it changes networks."""

CHECK_S = 60.0


@dataclass
class Strokes:
    """Painted pixels of the reduced copy: (h, w) uint8 of `tools.serving.page.drawing.BRUSHES` or `NO_STROKE`."""

    labels: NDArray


@dataclass
class Session:
    """What one browser has open.

    Attributes:
        folder: for its files, private.
        size: (height, width) of the photograph in px; None without one.
        scale: longer side of the reduced copy over that of the photograph.
        history: the steps as they were after each change, the present ones last; never empty.
        background: what was uploaded last to lie behind the subject, and its copy in `folder`.
        lock: held while its files change.
        ends_s: when its files go, on the monotonic clock.
        is_closed: its files are gone.
    """

    folder: Path
    size: tuple[int, int] | None = None
    scale: float = 1.0
    history: list[list[object]] = field(default_factory=lambda: [[]])
    background: tuple[Path, Path] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    ends_s: float = math.inf
    is_closed: bool = False

    @property
    def steps(self) -> list[object]:
        """What the user did, oldest first; the trimap follows from it.

        A step is "found", ("mask" or "trimap", path), a point (x, y, label) in px of the photograph, or `Strokes`.
        """
        return self.history[-1]

    @property
    def photograph(self) -> Path:
        """The photograph as it was uploaded."""
        return self.folder / "image"

    def new_path(self, stem: str, suffix: str = ".png") -> Path:
        """Name a new file in a folder of its own: browsers keep files by address, and save them by name."""
        folder = self.folder / f"{stem}_{time.monotonic_ns():x}"
        folder.mkdir()
        return folder / f"{stem}{suffix}"

    def forget(self, *stems: str, keep: int = 0) -> None:
        """Remove the files that earlier calls of `new_path` named, but for the newest few."""
        for stem in stems:
            folders = sorted(self.folder.glob(f"{stem}_*"))  # the names hold the time, in as many digits
            for folder in folders[: len(folders) - keep]:
                shutil.rmtree(folder)

    def renew(self) -> None:
        """Keep the session and its files for another hour."""
        self.ends_s = time.monotonic() + UNUSED_S
        for path in self.folder.glob("*/*"):
            with suppress(FileNotFoundError):
                os.utime(path)  # Gradio removes what it has shown by its age


class Sessions:
    """All sessions. Their files go soon after the browser leaves, or when they were not used for an hour.

    Args:
        parent: folder for theirs.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._expire, daemon=True, name="page sessions").start()

    @contextmanager
    def use(self, name: str) -> Iterator[Session]:
        """Hold the session of a name, a new one at first."""
        while True:
            with self._lock:
                if name not in self._sessions:
                    self._sessions[name] = Session(Path(mkdtemp(prefix="session_", dir=self.parent)))
                session = self._sessions[name]
            with session.lock:
                if not session.is_closed:  # while this waited for the lock
                    session.renew()
                    yield session
                    session.renew()
                    return

    def leave(self, name: str) -> None:
        """Let a session end soon, unless it is used again."""
        with self._lock:
            session = self._sessions.get(name)
        if session is not None:
            session.ends_s = min(session.ends_s, time.monotonic() + LEFT_S)

    def close_unused(self) -> None:
        """Remove the sessions whose time is over, and their files."""
        with self._lock:
            sessions = [*self._sessions.items()]
        for name, session in sessions:
            if session.lock.acquire(blocking=False):  # otherwise it is in use
                try:
                    self._close_if_over(name, session)
                finally:
                    session.lock.release()

    def _close_if_over(self, name: str, session: Session) -> None:
        if time.monotonic() > session.ends_s:
            with self._lock:
                del self._sessions[name]
            session.is_closed = True
            shutil.rmtree(session.folder, ignore_errors=True)

    def _expire(self) -> None:
        while True:
            time.sleep(CHECK_S)
            self.close_unused()
