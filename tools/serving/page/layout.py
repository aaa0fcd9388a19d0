"""What the page shows: its components from top to bottom. What happens when they are used is in events.py."""

from pathlib import Path
from typing import Any

import gradio as gr

from data.image_io.formats import READABLE
from data.trimap import WIDTH_PERCENT
from tools.serving.page.drawing import BRUSHES

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.jpg"))
SUFFIXES = [*READABLE]
CSS = """
.legend span { display: inline-block; width: .9em; height: .9em; border-radius: 50%; margin: 0 .3em 0 .9em; }
#results img, #clicks img { max-height: 75vh; }
#results .image-frame img { cursor: zoom-in; }
#slider img[style*="scale("]:not([style*="scale(1)"]) { image-rendering: pixelated; }
.gradio-container { max-width: 1500px !important; overflow: clip !important; }
@media (min-width: 768px) { #output { position: sticky; top: 0; align-self: flex-start; } }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  #results .tab-container button { padding: 0 .5rem; }
}
"""
SCRIPT = """<script>
document.addEventListener("paste", event => {  // Gradio has a button for it alone
  const input = document.querySelector("#upload input[type=file]");
  if (!input || !event.clipboardData.files.length) return;
  input.files = event.clipboardData.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});
document.addEventListener("click", event => {  // in a tab of its own, where the browser zooms to pixels
  const image = event.target.closest("#results button")?.querySelector(".image-frame img");
  if (image) window.open(image.src);
});
</script>"""
INTRODUCTION = (
    "# Cut out a subject\nGive a photograph, mark roughly what is the subject, and matte: hair and fur stay soft."
)
LEGEND = "".join(f'<span style="background: rgb{colour}"></span>{name}' for name, colour in BRUSHES.items())


class Layout:
    """The components of the page, each an attribute. Made within `gr.Blocks`."""

    def __init__(self) -> None:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=320):
                self._add_inputs()
            with gr.Column(min_width=320, elem_id="output"):
                self._add_results()

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
                self.points = gr.Textbox(
                    label="Points: x and y in px, and 1 for the subject or 0 for the background",
                    placeholder="[[420, 300, 1], [30, 40, 0]]", max_lines=5, submit_btn="Use points", elem_id="points",
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
            with gr.Tab("Compare"):
                self.slider = gr.ImageSlider(
                    interactive=False, type="filepath", show_label=False, elem_id="slider", max_height=700
                )
        with gr.Row():
            names = ("alpha", "cut-out", "trimap", "composite")
            self.downloads = [
                gr.DownloadButton(f"Download {name}", interactive=False, size="sm", elem_id=f"download_{name}")
                for name in names
            ]
