"""What happens when the components of the page are used: each method of `Events` serves one of them."""

import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from data.image_io.images import read_image
from tools.prediction.steps import parse_colour
from tools.serving.errors import describe
from tools.serving.page import work
from tools.serving.page.drawing import NO_STROKE, read_strokes
from tools.serving.page.files import Session, Sessions, Strokes
from tools.serving.page.layout import EXAMPLES, Layout
from tools.serving.page.work import FOUND
from tools.serving.service import Service

logger = logging.getLogger(__name__)

POLL_S = 0.25
STEP_S = 3.0  # a guess for what finds a subject or grows a region

T = TypeVar("T")


def in_words(step: Callable[..., Any]) -> Callable[..., Any]:
    """Show an error of a step in the page, in the words of the command line; a bug gets an id that the log has."""

    @functools.wraps(step)
    def shown(*arguments: Any, **options: Any) -> Any:
        try:
            return step(*arguments, **options)
        except Exception as error:
            status, words = describe(error)
            if status == 500:
                logger.error("%s: %s", step.__name__, words, exc_info=error)
            raise gr.Error(words, duration=15, print_exception=False) from error

    return shown


class Events:
    """What the page does. Gradio passes the request and the progress to a method by their types.

    Args:
        service: mattes, on its queue.
        sessions: of the browsers.
    """

    def __init__(self, service: Service, sessions: Sessions) -> None:
        self.service = service
        self.sessions = sessions
        self.seconds_per_pixel = 2e-5

    def connect(self, page: Layout) -> None:
        """Say which method serves which component, with which inputs and outputs."""
        private: dict[str, Any] = {"api_visibility": "private"}
        shown = [page.status, page.cutout, page.alpha, page.composite, page.slider]
        drawn = [page.clicks, page.editor, page.points]
        results = [*shown, *page.downloads, *drawn]
        # Never on the editor: it kept showing the progress of an event that had ended (Gradio 6.31).
        making, drawing = ({**private, "show_progress_on": places} for places in (shown, [page.status, page.clicks]))
        page.upload.input(self.open, [page.upload, page.width], results, **drawing)
        page.examples.click(self.open_example, [page.examples, page.width], [page.upload, *results], **drawing)
        page.find.click(self.find_subject, [page.width], drawn, **drawing)
        page.undo.click(self.undo_step, [page.width], drawn, **drawing)
        page.clear.click(self.start_over, [page.width], drawn, **drawing)
        page.width.input(self.redraw, [page.width], drawn, trigger_mode="always_last", **drawing)
        page.clicks.select(self.click, [page.label, page.width], drawn, **drawing)
        page.points.submit(self.use_points, [page.points, page.width], drawn, **drawing)
        page.apply.click(self.use_strokes, [page.editor, page.width], drawn, **drawing)
        for source in (page.file.upload, page.kind.input):
            source(self.add_file, [page.file, page.kind, page.width], drawn, **drawing)
        page.matte.click(self.make, [page.editor, page.width, page.bits, page.colour, page.behind], results, **making)
        behind, composed = [page.colour, page.behind], [page.composite, page.downloads[3]]
        page.colour.change(self.recompose, behind, composed, trigger_mode="always_last", **private)
        for source in (page.behind.upload, page.behind.clear):
            source(self.recompose, behind, composed, **private)

    @in_words
    def open(self, upload: str | None, width: float, request: gr.Request) -> Any:
        """Open an uploaded photograph."""
        if upload is None:
            return gr.skip()
        with self.sessions.use(str(request.session_hash)) as session:

            def open_photograph() -> Path:
                work.open_photograph(session, Path(upload), self.service.matter.max_pixels)
                return work.draw(session, width)

            drawn = self._draw(session, open_photograph)
            height, wide = session.size or (0, 0)
            return [f"{wide} x {height} px", *[None] * 4, *[gr.DownloadButton(interactive=False)] * 4, *drawn]

    def open_example(self, number: int, width: float, request: gr.Request) -> list[Any]:
        """Open one of the examples."""
        return [str(EXAMPLES[number]), *self.open(str(EXAMPLES[number]), width, request)]

    @in_words
    def find_subject(self, width: float, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Start the trimap by what stands out."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            return self._change(session, [*session.steps, FOUND], width, progress)

    @in_words
    def click(
        self,
        label: str,
        width: float,
        event: gr.SelectData,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Add a point; the event has it in px of the reduced copy."""
        with self.sessions.use(str(request.session_hash)) as session:
            height, wide = work.check_open(session)
            x, y = (round((value + 0.5) / session.scale - 0.5) for value in event.index)
            point = (min(max(x, 0), wide - 1), min(max(y, 0), height - 1), int(label == "subject"))
            return self._change(session, [*session.steps, point], width, progress)

    @in_words
    def use_points(
        self,
        text: str,
        width: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Take the points as they were edited."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            return self._change(session, work.replace_points(session.steps, text), width, progress)

    @in_words
    def use_strokes(
        self,
        editor: Any,
        width: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Add the strokes of the editor."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            strokes = self._strokes(editor, session)
            if strokes is None:
                raise work.DataError("Nothing is painted yet")
            return self._change(session, [*session.steps, strokes], width, progress)

    @in_words
    def add_file(self, path: str | None, kind: str, width: float, request: gr.Request) -> Any:
        """Start the trimap by a mask or a trimap."""
        if path is None:
            return gr.skip()
        with self.sessions.use(str(request.session_hash)) as session:
            max_pixels = self.service.matter.max_pixels
            return self._draw(session, lambda: work.add_file(session, Path(path), kind == "mask", max_pixels, width))

    @in_words
    def undo_step(self, width: float, request: gr.Request) -> list[Any]:
        """Take the last change back."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            return self._draw(session, lambda: work.undo(session, width))

    @in_words
    def start_over(self, width: float, request: gr.Request) -> list[Any]:
        """Take all steps back."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            return self._change(session, [], width, None)

    @in_words
    def redraw(self, width: float, request: gr.Request) -> Any:
        """Draw the trimap with another band."""
        with self.sessions.use(str(request.session_hash)) as session:
            if session.size is None:
                return gr.skip()
            return self._draw(session, lambda: work.draw(session, width))

    @in_words
    def make(
        self,
        editor: Any,
        width: float,
        bits: int,
        colour: str,
        behind: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """Matte, and show all results. Strokes that were not used yet are used."""
        with self.sessions.use(str(request.session_hash)) as session:
            height, wide = work.check_open(session)
            strokes = self._strokes(editor, session)
            history = session.history if strokes is None else [*session.history, [*session.steps, strokes]]

            def make() -> tuple[work.Results, Path | None, Path | None, float]:
                started_s = time.monotonic()
                background = self._background(colour, behind, session)
                with work.changed(session, history):
                    drawn = None if strokes is None else work.draw(session, width)
                    found = work.matte(session, self.service.matter, width, bits)
                    composite = work.compose(session, background)
                return found, composite, drawn, time.monotonic() - started_s

            results, composite, drawn, seconds = self._run(make, progress, self.seconds_per_pixel * height * wide)
            self.seconds_per_pixel = seconds / (height * wide)
            downloads = [
                gr.DownloadButton(value=str(path), interactive=True)
                for path in (results.alpha, results.cutout, results.trimap, composite)
            ]
            shown = [gr.skip()] * 3 if drawn is None else self._shown(session, drawn)
            return [f"{wide} x {height} px matted in {seconds:.1f} s", str(results.shown), str(results.alpha),
                    str(composite), (str(results.before), str(results.shown)), *downloads, *shown]  # fmt: skip

    @in_words
    def recompose(self, colour: str, behind: str | None, request: gr.Request) -> Any:
        """Lay the subject over another background."""
        with self.sessions.use(str(request.session_hash)) as session:
            composite = self._run(lambda: work.compose(session, self._background(colour, behind, session)))
            if composite is None:
                return gr.skip()
            return [str(composite), gr.DownloadButton(value=str(composite), interactive=True)]

    def leave(self, request: gr.Request) -> None:
        """Let the files of a browser go soon: it has left, or lost its connection."""
        self.sessions.leave(str(request.session_hash))

    def _change(self, session: Session, steps: list[object], width: float, progress: Any) -> list[Any]:
        return self._draw(session, lambda: work.change(session, steps, width), progress)

    def _draw(self, session: Session, draw: Callable[[], Path], progress: Any = None) -> list[Any]:
        """Draw on the queue and show it. One job does all of an event: a second one might be refused."""
        return self._shown(session, self._run(draw, progress))

    def _run(self, work: Callable[[], T], progress: Any = None, expected_s: float = STEP_S) -> T:
        """Run work on the queue, and show how far it is: a guess by the time that earlier work took."""
        future = self.service.queue.submit(work)
        started_s = None
        while progress is not None and not future.done():
            if started_s is None and future.running():
                started_s = time.monotonic()
            if started_s is None:
                progress(0, desc=f"{self.service.queue.num_waiting()} waiting")
            else:
                elapsed_s = time.monotonic() - started_s
                left_s = max(expected_s - elapsed_s, 0)
                share = min(elapsed_s / max(expected_s, 0.1), 0.95)
                progress(share, desc=f"about {left_s:.0f} s left" if left_s >= 1 else "nearly done")
            time.sleep(POLL_S)
        return future.result()

    def _strokes(self, editor: Any, session: Session) -> Strokes | None:
        (reduced,) = session.folder.glob("reduced_*/*")
        labels = read_strokes(editor, read_image(reduced).shape[:2])
        return Strokes(labels) if (labels != NO_STROKE).any() else None

    def _background(self, colour: str, behind: str | None, session: Session) -> work.Colours:
        if behind is not None:
            return work.take_background(session, Path(behind), self.service.matter.max_pixels)
        found = parse_colour(colour)
        if found is None:
            raise work.DataError("This is no colour")
        return work.Colours(found)

    def _shown(self, session: Session, drawn: Path) -> list[Any]:
        """Show the photograph with its trimap, to click on and to paint on, and the points."""
        path, points = str(drawn), work.points_of(session.steps)
        return [path, {"background": path, "layers": [], "composite": None}, json.dumps(points) if points else ""]
