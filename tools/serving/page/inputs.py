"""What a browser sends to the page's components, taken with care: Gradio would decode it, or keep all of it."""

from collections import OrderedDict
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorData
from gradio.data_classes import FileData
from numpy.typing import NDArray
from PIL import Image

from data.image_io.decoding import decode
from data.image_io.images import DataError
from tools.serving.page.drawing import SHOWN_PX

MAX_LAYERS, MAX_EDITORS = 4, 64
MAX_SENT_BYTES = 64_000_000
"""Of the layers that wait for their event. Beyond it the oldest are forgotten."""

MAX_LAYER_PX = (2 * SHOWN_PX) ** 2
"""Of a layer of strokes. An editor makes them as large as the reduced copy, or twice that on a dense screen."""


def path_of(payload: FileData | None) -> str | None:
    """Return the path of an uploaded file as it is; Gradio itself would decode or copy it."""
    return None if payload is None else payload.path


def guard_editors() -> None:
    """Let editors pass on their layers alone, and keep little of what browsers send ahead of an event.

    This changes the class, not one editor: after `gr.skip()` Gradio makes a new editor for the session.
    """
    sent: OrderedDict[str, list[bytes]] = OrderedDict()

    @server
    def accept_blobs(self: gr.ImageEditor, data: AcceptBlobs) -> None:
        """Keep the layers that a browser sends; of the picture below them nothing is used."""
        fields: dict[str, Any] = {**data.data}  # what a client left out is absent
        if fields.get("type") == "layer" and str(fields.get("index")) in map(str, range(MAX_LAYERS)):
            layers = sent.setdefault(str(fields.get("id")), [])
            layers += [content for _, content in data.files[:1]]
            del layers[:-MAX_LAYERS]
        while len(sent) > MAX_EDITORS or sum(map(len, chain.from_iterable(sent.values()))) > MAX_SENT_BYTES:
            sent.popitem(last=False)

    def preprocess(self: gr.ImageEditor, payload: EditorData | None) -> list[NDArray[np.uint8]]:
        """Decode the layers, (h, w, 4) each."""
        if payload is None:
            return []
        if payload.id is not None:
            contents = sent.pop(payload.id, [])
        else:
            contents = [Path(layer.path).read_bytes() for layer in payload.layers[:MAX_LAYERS]]
        return [decode_layer(content) for content in contents]

    replaced: Any = gr.ImageEditor
    replaced.accept_blobs, replaced.preprocess = accept_blobs, preprocess


def decode_layer(content: bytes) -> NDArray[np.uint8]:
    """Decode a layer of strokes: (h, w, 4) uint8 RGBA.

    Raises:
        DataError: too large, or not RGBA.
        UserError: no image.
    """
    with Image.open(BytesIO(content)) as image:
        if image.width * image.height > MAX_LAYER_PX:
            raise DataError("the strokes are larger than the picture they were painted on")
    pixels = decode(content)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 4:
        raise DataError("expected strokes on a transparent layer")
    return pixels
