"""Hostile requests to the page: its routes are Gradio's, and none leads to another host, file, or client's files."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import MAX_BYTES, bomb, encoded, page_folder, pair, running, wait_until, with_page
from tools.serving.errors import RefusedError
from tools.serving.page.drawing import BRUSHES
from tools.serving.security.bodies import BodyLimits
from tools.serving.security.guard import Rules

LEMUR = REPOSITORY / "docs" / "lemur.jpg"

pytestmark = [
    pytest.mark.slow,  # Gradio alone takes seconds to import
    # its queue and a new pandas
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting", "ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    rules = Rules(body=BodyLimits(MAX_BYTES), max_streams=8, max_requests=32)
    with running(tmp_path_factory.mktemp("temporary"), rules, mount=with_page) as started:
        yield started
        assert started.client.get("/").status_code == 200


def upload(service, content, name="photograph.png"):
    answer = service.client.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def call(service, name, data, session="abc"):
    """Call an event of the page as its script does: the last message of its stream."""
    config = service.client.get("/config").json()
    (number, *_) = [one["id"] for one in config["dependencies"] if one["api_name"] == name]
    body = {"data": data, "fn_index": number, "session_hash": session, "event_data": None}
    joined = service.client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with service.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the stream ended early")


def test_an_upload_opens(service):
    message = call(service, "open", [file_data(upload(service, pair().files["image"])), 3])
    assert message["success"], message
    assert message["output"]["data"][0] == "56 x 40 px"


EDITOR = {"background": None, "layers": [], "composite": None, "id": None}


def opened(service, session):
    path = upload(service, pair().files["image"])
    assert call(service, "open", [file_data(path), 3], session)["success"]


def matted(service, session, **changes):
    given = {"editor": EDITOR, "width": 3, "bits": 8, "colour": "#20a040", "behind": None, **changes}
    return call(service, "make", [*given.values()], session)


def test_a_bad_background_leaves_the_results_as_they_were(service):
    opened(service, "background")
    trimap = file_data(upload(service, pair().files["trimap"]))
    assert call(service, "add_file", [trimap, "trimap", 3], "background")["success"]
    message = matted(service, "background")
    assert message["success"], message
    alpha = Path(message["output"]["data"][2]["path"])
    for changes, words in (
        ({"behind": file_data(upload(service, b"words"))}, "cannot read the background"),
        ({"behind": file_data(upload(service, bomb()))}, "the background"),
        ({"colour": "no colour"}, "This is no colour"),
    ):
        message = matted(service, "background", **changes)
        assert words in message["output"]["error"], message
        assert alpha.exists()


def test_the_editor_stays_guarded_after_an_event_that_leaves_it_as_it_is(service):
    opened(service, "skips")
    assert call(service, "open", [None, 3], "skips")["success"]
    message = matted(service, "skips", editor={**EDITOR, "layers": [file_data(upload(service, bomb(4000, 4000)))]})
    assert "larger than the picture" in message["output"]["error"], message
    trimap = file_data(upload(service, pair().files["trimap"]))
    assert call(service, "add_file", [trimap, "trimap", 3], "skips")["success"]
    for _ in range(2):
        assert matted(service, "skips")["success"]


def test_every_way_to_change_a_setting_is_served(service):
    """A typed colour gives no release, nor do arrow keys on the band's width; a kind may be chosen after its file."""
    config = service.client.get("/config").json()
    names = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
    served = {
        (names.get(target[0]), target[1], one["api_name"], one["trigger_mode"])
        for one in config["dependencies"]
        for target in one["targets"]
    }
    assert {
        ("colour", "change", "recompose", "always_last"),
        ("width", "input", "redraw", "always_last"),
    } <= served
    assert ("kind", "input", "add_file_1", "once") in served


def test_an_event_that_a_full_queue_refuses_changes_nothing(service, monkeypatch):
    opened(service, "refused")
    points = "[[30, 20, 1], [2, 2, 0]]"
    assert call(service, "use_points", [points, 3], "refused")["success"]
    layer = np.zeros((40, 56, 4), np.uint8)
    layer[20:25, 20:30] = *BRUSHES["subject"], 255
    painted = upload(service, cv2.imencode(".png", layer[:, :, [2, 1, 0, 3]])[1].tobytes())
    strokes = {**EDITOR, "layers": [file_data(painted)]}
    trimap = file_data(upload(service, pair().files["trimap"]))

    def refuse(work):
        raise RefusedError(503, "the queue is full", 5)

    with monkeypatch.context() as patched:
        patched.setattr(service.queue, "submit", refuse)
        for name, data in (
            ("undo_step", [3]),
            ("start_over", [3]),
            ("add_file", [trimap, "trimap", 3]),
            ("open", [trimap, 3]),
            ("use_strokes", [strokes, 3]),
            ("make", [strokes, 3, 8, "#20a040", None]),
        ):
            message = call(service, name, data, "refused")
            assert not message["success"] and "the queue is full" in message["output"]["error"], (name, message)
    message = call(service, "redraw", [3], "refused")
    assert json.loads(message["output"]["data"][2]) == json.loads(points)
    assert call(service, "undo_step", [3], "refused")["output"]["data"][2] == ""


def test_each_change_is_one_job_of_the_queue(service, monkeypatch):
    jobs, submit = [], service.queue.submit
    monkeypatch.setattr(service.queue, "submit", lambda work: jobs.append(work) or submit(work))
    opened(service, "jobs")
    trimap = file_data(upload(service, pair().files["trimap"]))
    assert call(service, "add_file", [trimap, "trimap", 3], "jobs")["success"]
    assert matted(service, "jobs")["success"] and len(jobs) == 3


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/theme.css", "/docs", "/nothing"])
def test_all_routes_have_the_headers(service, path):
    answer = service.client.get(path)
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "/gradio_api/queue/join"])
def test_gradios_routes_are_guarded(service, path):
    assert service.client.get(path, headers={"Host": "evil.example"}).status_code == 421
    assert service.client.post(path, headers={"Origin": "https://evil.example"}).status_code == 403
    assert service.client.post(path, headers={"Origin": "http://localhost:1"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "{folder}/../../etc/passwd",
        "{folder}/%2e%2e/%2e%2e/etc/passwd",
        "README.md",
        "tools/serve.py",
        "file:///etc/passwd",
        "//evil.example/x",
    ],
)
def test_the_file_route_serves_no_other_file(service, path):
    path = path.format(folder=page_folder())
    for route in ("file=", "file/"):
        head = f"GET /gradio_api/{route}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = service.send_raw(head.encode())
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 404 ")), answer[:300]


@pytest.fixture
def bait():
    """A server that nobody may ask: its address, and who came."""
    visits = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                visits.append(connection)
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.png", visits
        listening.shutdown(socket.SHUT_RDWR)


def test_no_address_is_fetched(service, bait):
    address, visits = bait
    for route in ("file=", "proxy=", "file/"):
        answer = service.client.get(f"/gradio_api/{route}{address}")
        assert answer.status_code in (400, 403, 404), (route, answer.status_code)
    for data in (file_data(address), file_data(address, url=address), file_data("x.png", url=address)):
        assert not call(service, "open", [data, 3])["success"]
    assert visits == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "docs/lemur.jpg", str(LEMUR)])
def test_events_take_no_path_but_those_of_uploads(service, path):
    call(service, "open", [file_data(upload(service, pair().files["image"])), 3])
    for name, data in (
        ("open", [file_data(path), 3]),
        ("add_file", [file_data(path), "mask", 3]),
        ("use_strokes", [{"background": None, "layers": [file_data(path)], "composite": None, "id": None}, 3]),
    ):
        message = call(service, name, data)
        assert not message["success"] and "cannot read" not in json.dumps(message), name


def test_what_an_editor_sends_is_bounded(service):
    config = service.client.get("/config").json()
    (editor,) = [one["id"] for one in config["components"] if one["type"] == "imageeditor"]

    def send(index, number=0):
        fields = {"type": "layer", "index": index, "id": f"editor{number}"}
        form = {"component_id": str(editor), "fn_name": "accept_blobs", "session_hash": "abc"}
        form |= {name: str(value) for name, value in fields.items() if value is not None}
        files = {"files": ("layer.png", bomb())}
        return service.client.post("/gradio_api/component_server", data=form, files=files).status_code

    assert {send(index) for index in (0, 1_000_000_000, "9" * 5000, None)} == {200}
    layers = [file_data(upload(service, bomb()))]
    message = call(service, "use_strokes", [{"background": None, "layers": layers, "composite": None, "id": None}, 3])
    assert not message["success"]


def test_layers_that_wait_for_their_event_have_a_limit_of_bytes(monkeypatch):
    import gradio as gr
    from gradio.components.image_editor import AcceptBlobs, EditorData

    from tools.serving.page import inputs

    monkeypatch.setattr(inputs, "MAX_SENT_BYTES", 1000)
    for name in ("accept_blobs", "preprocess"):
        monkeypatch.setattr(gr.ImageEditor, name, getattr(gr.ImageEditor, name))  # is put back after the test
    inputs.guard_editors()
    editor = gr.ImageEditor()
    layer = encoded(np.zeros((4, 4, 4), np.uint8))
    for number, content in enumerate((layer, bytes(1001 - 2 * len(layer)), layer, layer)):
        blob = {"type": "layer", "index": 0, "id": str(number), "file": b""}
        editor.accept_blobs(AcceptBlobs(data=blob, files=[("layer.png", content)]))
    assert [len(editor.preprocess(EditorData(id=str(number)))) for number in (0, 2, 3)] == [0, 1, 1]


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "a\r\nb.png", "." * 300, "<script>.png", ".."])
def test_the_name_of_an_upload_leads_nowhere(service, name):
    before = set(page_folder().parent.iterdir())
    answer = service.client.post("/gradio_api/upload", files={"files": (name, b"x")})
    if answer.status_code == 200:
        (path,) = answer.json()
        assert page_folder() in Path(path).resolve().parents
    assert set(page_folder().parent.iterdir()) <= before


def test_bad_photographs_get_the_words_of_the_command_line(service):
    for content, words in ((b"words", "cannot read the photograph: not an image"), (bomb(), "pixels")):
        message = call(service, "open", [file_data(upload(service, content)), 3])
        assert not message["success"] and words in message["output"]["error"], message


def test_an_upload_beyond_the_limit_is_refused(service):
    answer = service.client.post("/gradio_api/upload", files={"files": ("a.png", bytes(MAX_BYTES + 1))})
    assert answer.status_code == 413


@pytest.mark.parametrize("route", ["run/open", "api/open", "call/open", "call/v2/open"])
def test_events_are_no_api(service, route):
    answer = service.client.post(f"/gradio_api/{route}", json={"data": [None, 3]})
    assert answer.status_code >= 400


@pytest.mark.parametrize("route", ["vibe-edit", "process_recording", "dev/reload", "run-history/connect"])
def test_routes_for_developers_are_closed(service, route):
    for method in ("GET", "POST"):
        assert service.client.request(method, f"/gradio_api/{route}", json={}).status_code >= 400


def test_a_flood_of_event_streams_leaves_the_service_alive(service):
    def hold(number):
        with httpx.stream("GET", f"{service.url}/gradio_api/heartbeat/s{number}", timeout=20) as stream:
            status.append(stream.status_code)
            if stream.status_code == 200:
                done.wait(20)

    status, done = [], threading.Event()
    with ThreadPoolExecutor(24) as pool:
        held = [pool.submit(hold, number) for number in range(24)]
        wait_until(lambda: len(status) == 24)
        assert status.count(200) == 8 and status.count(503) == 16
        assert service.client.get("/health").status_code == 200
        assert service.matte(pair().files).status_code == 200
        done.set()
        [future.result() for future in held]


def test_a_flood_of_joins_is_refused_when_the_queue_is_full(service):
    config = service.client.get("/config").json()
    (number, *_) = [one["id"] for one in config["dependencies"] if one["api_name"] == "find_subject"]

    def join(client):
        body = {"data": [3], "fn_index": number, "session_hash": f"flood{client}"}
        return service.client.post("/gradio_api/queue/join", json=body).status_code

    statuses = [join(client) for client in range(80)]
    assert {*statuses} <= {200, 503}
    assert service.client.get("/health").status_code == 200
    assert service.matte(pair().files).status_code == 200
