"""The page: a photograph, its trimap by clicks or strokes, and the results; Gradio's components and their events."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import gradio as gr
import httpx
from fastapi import FastAPI
from gradio import processing_utils

from data.image_io.formats import READABLE
from data.image_io.images import read_image
from data.trimap import WIDTH_PERCENT
from tools.prediction.steps import parse_colour
from tools.serving.errors import describe
from tools.serving.matting import check_size
from tools.serving.page import work
from tools.serving.page.drawing import BRUSHES, NO_STROKE, read_strokes
from tools.serving.page.files import UNUSED_S, Session, Sessions, Strokes
from tools.serving.page.inputs import guard_editor, path_of
from tools.serving.page.work import FOUND
from tools.serving.service import Service

logger = logging.getLogger(__name__)

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.jpg"))
SUFFIXES = [*READABLE]
CSS = """
.legend span { display: inline-block; width: .9em; height: .9em; border-radius: 50%; margin: 0 .3em 0 .9em; }
#results img, #clicks img { image-rendering: auto; }
.gradio-container { max-width: 1500px !important; }
@media (max-width: 640px) { .gradio-container { padding: .5rem !important; } }
"""
INTRODUCTION = (
    "# Cut out a subject\nGive a photograph, mark roughly what is the subject, and matte: hair and fur stay soft."
)
LEGEND = "".join(f'<span style="background: rgb{colour}"></span>{name}' for name, colour in BRUSHES.items())
POLL_S = 0.25
STEP_S = 3.0  # a guess for what finds a subject or grows a region

T = TypeVar("T")


async def refuse_url(url: str) -> NoReturn:
    """Fetch nothing: Gradio would fetch what a client names instead of a file."""
    raise httpx.UnsupportedProtocol("this server fetches no URLs")


def mount_page(app: FastAPI, service: Service, folder: Path) -> FastAPI:
    """Mount the page of a service at "/".

    Args:
        app: of the service.
        service: mattes, on its queue.
        folder: for files of the page, the same as GRADIO_TEMP_DIR, which is read when Gradio is imported.
    """
    processing_utils.async_ssrf_protected_get = refuse_url
    gr.set_static_paths(EXAMPLES)  # served where they lie: a copy in the folder would be an upload among others
    page = Page(service, Sessions(folder))
    return gr.mount_gradio_app(
        app,
        page.blocks,
        "/",
        footer_links=[],
        show_error=True,
        max_file_size=service.body.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        css=CSS,
        theme=gr.themes.Default(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


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


class Page:
    """The components of the page, and what happens when they are used."""

    def __init__(self, service: Service, sessions: Sessions) -> None:
        self.service = service
        self.sessions = sessions
        self.seconds_per_pixel = 2e-5
        with gr.Blocks(title="Cut out a subject", analytics_enabled=False, delete_cache=(60, int(UNUSED_S))) as blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(min_width=320):
                    self._add_inputs()
                with gr.Column(min_width=320):
                    self._add_results()
            components: list[Any] = [self.upload, self.file, self.behind]
            for component in components:
                component.preprocess = path_of
            guard_editor(self.editor)
            self._add_events()
            blocks.unload(self.close)
        blocks.queue(max_size=64, default_concurrency_limit=8, api_open=False)
        # Gradio checks the paths that clients send, and what is served inline, only of blocks that say so.
        blocks.has_launched = blocks.is_running = True
        self.blocks = blocks

    def _add_inputs(self) -> None:
        self.upload = gr.Image(
            type="filepath", label="Photograph", sources=["upload", "webcam", "clipboard"], height=280, elem_id="upload"
        )
        self.examples = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[str(path)] for path in EXAMPLES],
            label="Examples",
            type="index",
            elem_id="examples",
        )
        with gr.Row():
            self.find = gr.Button("Find subject", elem_id="find")
            self.undo = gr.Button("Undo", elem_id="undo")
            self.clear = gr.Button("Start over", elem_id="clear")
        self.width = gr.Slider(
            0.2, 15, WIDTH_PERCENT, step=0.1, label="Width of the unknown band, % of the longer side", elem_id="width"
        )
        gr.HTML(f'<div class="legend">{LEGEND}</div>')
        with gr.Tabs():
            with gr.Tab("Click"):
                self.label = gr.Radio(
                    ["subject", "background"], value="subject", label="A click marks", elem_id="label"
                )
                self.clicks = gr.Image(
                    interactive=False, type="filepath", show_label=False, buttons=["fullscreen"], elem_id="clicks",
                    alt_text="The photograph, tinted by its trimap; click to mark",
                )  # fmt: skip
            with gr.Tab("Paint"):
                colours: list[Any] = [f"rgb{colour}".replace(" ", "") for colour in BRUSHES.values()]
                self.editor = gr.ImageEditor(
                    sources=(), transforms=(), layers=False, type="numpy", image_mode="RGBA", show_label=False,
                    brush=gr.Brush(colors=colours, default_color=colours[0], color_mode="fixed"),
                    eraser=gr.Eraser(), buttons=["fullscreen"], elem_id="editor", canvas_size=(800, 600),
                )  # fmt: skip
                self.apply = gr.Button("Use strokes", elem_id="apply")
            with gr.Tab("Mask or trimap"):
                self.kind = gr.Radio(["mask", "trimap"], value="mask", label="The file is a", elem_id="kind")
                self.file = gr.File(file_types=["image", *SUFFIXES], type="filepath", label="File", elem_id="file")

    def _add_results(self) -> None:
        with gr.Row():
            self.bits = gr.Radio([8, 16], value=8, label="Bits of alpha and cut-out", elem_id="bits")
            self.matte = gr.Button("Matte", variant="primary", elem_id="matte")
        self.status = gr.Markdown(elem_id="status")
        options: dict[str, Any] = dict(interactive=False, type="filepath", show_label=False, buttons=["fullscreen"])
        with gr.Tabs(elem_id="results"):
            with gr.Tab("Cut-out"):
                self.cutout = gr.Image(**options, elem_id="cutout", alt_text="The subject on a checkerboard")
            with gr.Tab("Alpha"):
                self.alpha = gr.Image(**options, elem_id="alpha", alt_text="Alpha: white is opaque")
            with gr.Tab("Composite"):
                with gr.Row():
                    self.colour = gr.ColorPicker("#20a040", label="Background", elem_id="colour")
                    self.behind = gr.File(
                        file_types=["image", *SUFFIXES], type="filepath", label="or image", height=90, elem_id="behind"
                    )
                self.composite = gr.Image(**options, elem_id="composite", alt_text="The subject over the background")
            with gr.Tab("Before and after"):
                self.slider = gr.ImageSlider(
                    interactive=False, type="filepath", show_label=False, elem_id="slider", max_height=700
                )
        with gr.Row():
            names = ("alpha", "cut-out", "trimap", "composite")
            self.downloads = [
                gr.DownloadButton(f"Download {name}", interactive=False, size="sm", elem_id=f"download_{name}")
                for name in names
            ]

    def _add_events(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        drawn = [self.clicks, self.editor]
        results = [
            self.status, self.cutout, self.alpha, self.composite, self.slider, *self.downloads, *drawn
        ]  # fmt: skip
        self.upload.input(self.open, [self.upload, self.width], results, **private)
        self.examples.click(self.open_example, [self.examples, self.width], [self.upload, *results], **private)
        self.find.click(self.find_subject, [self.width], drawn, **private)
        self.undo.click(self.undo_step, [self.width], drawn, **private)
        self.clear.click(self.start_over, [self.width], drawn, **private)
        self.width.release(self.redraw, [self.width], drawn, **private)
        self.clicks.select(self.click, [self.label, self.width], drawn, **private)
        self.apply.click(self.use_strokes, [self.editor, self.width], drawn, **private)
        self.file.upload(self.add_file, [self.file, self.kind, self.width], drawn, **private)
        self.matte.click(self.make, [self.editor, self.width, self.bits, self.colour, self.behind], results, **private)
        for source in (self.colour.release, self.behind.upload, self.behind.clear):
            source(self.recompose, [self.colour, self.behind], [self.composite, self.downloads[3]], **private)

    # What the events call. Gradio passes the request and the progress by their types.

    @in_words
    def open(self, upload: str | None, width: float, request: gr.Request) -> list[Any]:
        """Open an uploaded photograph."""
        if upload is None:
            return [gr.skip()] * 11
        with self.sessions.use(str(request.session_hash)) as session:
            self.sessions.own(session, Path(upload))
            self._run(lambda: work.open_photograph(session, Path(upload), self.service.matter.max_pixels))
            height, wide = session.size or (0, 0)
            return [f"{wide} x {height} px", *[None] * 4, *[gr.DownloadButton(interactive=False)] * 4,
                    *self._drawn(session, width)]  # fmt: skip

    def open_example(self, number: int, width: float, request: gr.Request) -> list[Any]:
        """Open one of the examples."""
        return [str(EXAMPLES[number]), *self.open(str(EXAMPLES[number]), width, request)]

    @in_words
    def find_subject(self, width: float, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        """Start the trimap by what stands out."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            return self._step(session, FOUND, width, progress)

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
            x, y = ((value + 0.5) / session.scale - 0.5 for value in event.index)
            point = (min(max(x, 0), wide - 1), min(max(y, 0), height - 1), int(label == "subject"))
            return self._step(session, point, width, progress)

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
            return self._step(session, strokes, width, progress)

    @in_words
    def add_file(self, path: str | None, kind: str, width: float, request: gr.Request) -> list[Any]:
        """Start the trimap by a mask or a trimap."""
        if path is None:
            return [gr.skip()] * 2
        with self.sessions.use(str(request.session_hash)) as session:
            self.sessions.own(session, Path(path))
            max_pixels = self.service.matter.max_pixels
            self._run(lambda: work.add_file(session, Path(path), kind == "mask", max_pixels))
            return self._drawn(session, width)

    @in_words
    def undo_step(self, width: float, request: gr.Request) -> list[Any]:
        """Take the last step back."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            del session.steps[-1:]
            return self._drawn(session, width)

    @in_words
    def start_over(self, width: float, request: gr.Request) -> list[Any]:
        """Take all steps back."""
        with self.sessions.use(str(request.session_hash)) as session:
            work.check_open(session)
            session.steps.clear()
            return self._drawn(session, width)

    @in_words
    def redraw(self, width: float, request: gr.Request) -> list[Any]:
        """Draw the trimap with another band."""
        with self.sessions.use(str(request.session_hash)) as session:
            if session.size is None:
                return [gr.skip()] * 2
            return self._drawn(session, width)

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
        started_s = time.monotonic()
        with self.sessions.use(str(request.session_hash)) as session:
            height, wide = work.check_open(session)
            strokes = self._strokes(editor, session)
            if strokes is not None:
                session.steps.append(strokes)
            expected_s = self.seconds_per_pixel * height * wide

            def make() -> tuple[work.Results, Path | None]:
                found = work.matte(session, self.service.matter, width, bits)
                return found, work.compose(session, self._background(colour, behind, session))

            results, composite = self._run(make, progress, expected_s)
            seconds = time.monotonic() - started_s
            self.seconds_per_pixel = seconds / (height * wide)
            (before,) = session.folder.glob("reduced_*/*")
            downloads = [
                gr.DownloadButton(value=str(path), interactive=True)
                for path in (results.alpha, results.cutout, results.trimap, composite)
            ]
            drawn = [gr.skip()] * 2 if strokes is None else self._drawn(session, width)
            return [f"{wide} x {height} px matted in {seconds:.1f} s", str(results.shown), str(results.alpha),
                    str(composite), (str(before), str(results.shown)), *downloads, *drawn]  # fmt: skip

    @in_words
    def recompose(self, colour: str, behind: str | None, request: gr.Request) -> list[Any]:
        """Lay the subject over another background."""
        with self.sessions.use(str(request.session_hash)) as session:
            composite = self._run(lambda: work.compose(session, self._background(colour, behind, session)))
            if composite is None:
                return [gr.skip()] * 2
            return [str(composite), gr.DownloadButton(value=str(composite), interactive=True)]

    def close(self, request: gr.Request) -> None:
        """Remove the files of a browser that has left."""
        self.sessions.close(str(request.session_hash))

    def _step(self, session: Session, step: object, width: float, progress: Any) -> list[Any]:
        """Add a step, and take it back if it gives no trimap."""
        session.steps.append(step)
        try:
            return self._drawn(session, width, progress)
        except Exception:
            session.steps.pop()
            raise

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

    def _background(self, colour: str, behind: str | None, session: Session) -> Any:
        if behind is None:
            found = parse_colour(colour)
            if found is None:
                raise work.DataError("This is no colour")
            return found
        self.sessions.own(session, Path(behind))
        check_size(Path(behind), self.service.matter.max_pixels, "the background")
        try:
            return read_image(behind)
        except work.DataError as error:
            raise work.DataError(str(error).replace(behind, "the background")) from error

    def _drawn(self, session: Session, width: float, progress: Any = None) -> list[Any]:
        """Show the photograph with its trimap, to click on and to paint on."""
        path = str(self._run(lambda: work.draw(session, width), progress))
        return [path, {"background": path, "layers": [], "composite": None}]
