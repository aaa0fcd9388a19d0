"""The page at "/" of the service: its components with their events, guarded where Gradio trusts its clients."""

from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
import httpx
from fastapi import FastAPI
from gradio import processing_utils

from tools.serving.page.events import Events
from tools.serving.page.files import UNUSED_S, Sessions
from tools.serving.page.inputs import guard_editors, path_of
from tools.serving.page.layout import CSS, EXAMPLES, SCRIPT, Layout
from tools.serving.service import Service


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
    guard_editors()
    gr.set_static_paths(EXAMPLES)  # served where they lie: a copy in the folder would be an upload among others
    return gr.mount_gradio_app(
        app,
        make_blocks(Events(service, Sessions(folder))),
        "/",
        footer_links=[],
        show_error=True,
        max_file_size=service.body.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        css=CSS,
        head=SCRIPT,
        theme=gr.themes.Default(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def make_blocks(events: Events) -> gr.Blocks:
    """Lay the page out and connect its events; uploads come as they are."""
    with gr.Blocks(title="Cut out a subject", analytics_enabled=False, delete_cache=(60, int(UNUSED_S))) as blocks:
        layout = Layout()
        uploads: list[Any] = [layout.upload, layout.file, layout.behind]
        for upload in uploads:
            upload.preprocess = path_of
        events.connect(layout)
        blocks.unload(events.leave)
    blocks.queue(max_size=64, default_concurrency_limit=8, api_open=False)
    # Gradio checks the paths that clients send, and what is served inline, only of blocks that say so.
    blocks.has_launched = blocks.is_running = True
    return blocks
