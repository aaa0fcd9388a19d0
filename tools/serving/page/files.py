"""The files and the work of each browser session of the page."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from numpy.typing import NDArray

UNUSED_S = 3600.0
"""Time after which the files of an unused session go."""

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
        uploads: its files that lie elsewhere in the server's folder.
        size: (height, width) of the photograph in px; None without one.
        scale: longer side of the reduced copy over that of the photograph.
        steps: what the user did, oldest first: "found", ("mask" or "trimap", path), a point (x, y, label) in px of the
            photograph, or `Strokes`. The trimap follows from these.
        lock: held while its files change.
    """

    folder: Path
    uploads: set[Path] = field(default_factory=set)
    size: tuple[int, int] | None = None
    scale: float = 1.0
    steps: list[object] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    used_s: float = field(default_factory=time.monotonic)

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


class Sessions:
    """All sessions. Their files go when the browser leaves, or when they were not used for an hour.

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
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = Session(Path(mkdtemp(prefix="session_", dir=self.parent)))
            session = self._sessions[name]
        with session.lock:
            session.used_s = time.monotonic()
            yield session
            session.used_s = time.monotonic()

    def own(self, session: Session, upload: Path) -> None:
        """Let an upload go with its session; the examples of the page are no uploads."""
        if upload.is_relative_to(self.parent):
            session.uploads.add(upload)

    def close(self, name: str) -> None:
        """Remove a session and its files."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            with session.lock:
                shutil.rmtree(session.folder, ignore_errors=True)
                for path in session.uploads:
                    path.unlink(missing_ok=True)

    def close_unused(self, unused_s: float = UNUSED_S) -> None:
        """Close the sessions that were not used for some seconds."""
        now_s = time.monotonic()
        with self._lock:
            unused = [name for name, session in self._sessions.items() if now_s - session.used_s > unused_s]
        for name in unused:
            self.close(name)

    def _expire(self) -> None:
        while True:
            time.sleep(CHECK_S)
            self.close_unused()
