"""Hostile requests: each is refused, and the service lives on. `test_tools_serving_page_mount.py` asks the page."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.helpers.serving import MAX_BYTES, Gate, bomb, pair, running, wait_until
from tools.serving.security import connections
from tools.serving.security.bodies import BodyLimits
from tools.serving.security.guard import Rules

TOKEN = "a-token-of-the-tests"
FRIEND = "chrome-extension://abc"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with a token, an allowed origin and little patience; its client knows the token."""
    body = BodyLimits(MAX_BYTES, patience_s=0.5)
    rules = Rules({"matting.example"}, {FRIEND}, TOKEN, body, max_streams=2, max_requests=8)
    with running(tmp_path_factory.mktemp("temporary"), rules) as started:
        started.client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield started
        assert started.client.get("/health").status_code == 200


def stranger(service, **options):
    return httpx.Client(base_url=service.url, trust_env=False, **options)


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    assert [*answer.json()] == ["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    return answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/api/info", "/config", "/gradio_api/info", "/nothing"]
)
def test_without_the_token_nothing_but_health_is_answered(service, path):
    client = stranger(service)
    assert "token" in refusal(client.get(path), 401)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong-token-wrong-token"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": f"matting_session={TOKEN}"},
        {"Cookie": "matting_session="},
    ],
)
def test_a_wrong_token_is_refused(service, headers):
    refusal(stranger(service, headers=headers).get("/api/info"), 401)


def test_a_browser_logs_in_by_a_form_and_gets_a_cookie(service):
    client = stranger(service)
    form = client.get("/", headers={"Accept": "text/html"})
    assert form.status_code == 401 and 'name="token"' in form.text
    wrong = client.post("/login", data={"token": "<script>"}, headers={"Accept": "text/html"})
    assert wrong.status_code == 401 and "not the token" in wrong.text and "<script>" not in wrong.text
    answer = client.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert client.get("/api/info").status_code == 200
    assert client.post("/login", content=b"token=" + bytes(9000)).status_code == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", "", "[", "a@127.0.0.1.x"]
)
def test_a_foreign_host_is_refused(service, host):
    refusal(service.client.get("/api/info", headers={"Host": host}), 421)
    refusal(service.client.get("/health", headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["localhost:1", "[::1]:7860", "192.168.0.7", "matting.example"])
def test_own_hosts_are_served(service, host):
    assert service.client.get("/api/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_requests_of_other_sites_are_refused(service, headers):
    answer = service.client.post("/api/matte", files=pair().files, headers=headers)
    refusal(answer, 403)
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_origin_may_ask_and_others_get_no_preflight(service):
    preflight = stranger(service).options("/api/matte", headers={"Origin": FRIEND})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, FRIEND)
    answer = service.client.post("/api/matte", files=pair().files, headers={"Origin": FRIEND})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert stranger(service).options("/api/matte", headers={"Origin": "https://evil.example"}).status_code == 403
    own = service.client.get("/api/info", headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "a\r\nX-Evil: 1", "..%2f..%2fx", "a" * 5000, "\u202e"]
)
def test_the_name_of_a_file_is_never_used(service, name):
    given = pair()
    files = {"image": (name, given.files["image"]), "trimap": (name, given.files["trimap"])}
    answer = service.client.post("/api/matte", files=files)
    assert answer.status_code in (200, 400) and "x-evil" not in answer.headers
    assert [*service.folder.iterdir()] == []


@pytest.mark.parametrize("field", ["image", "trimap", "mask", "background_image", "file"])
@pytest.mark.parametrize("value", ["http://127.0.0.1:1/x.png", "file:///etc/passwd", "/etc/passwd"])
def test_addresses_and_paths_are_no_files(service, field, value):
    files = {name: content for name, content in pair().files.items() if name != field}
    path = "/api/remove" if field == "file" else "/api/matte"
    assert "root:" not in refusal(service.client.post(path, files=files, data={field: value}), 422)


@pytest.mark.parametrize("value", ["x\r\nSet-Cookie: a=b", "teal\n", "url(http://127.0.0.1)"])
def test_values_do_not_reach_headers(service, value):
    answer = service.client.post("/api/matte", files=pair().files, data={"background": value})
    assert answer.status_code == 422 and "set-cookie" not in answer.headers


def test_bombs_are_refused_before_they_are_decoded(service):
    started_s = time.monotonic()
    for content in (bomb(), bomb(100_000, 100_000), bomb(1000, 1000)):
        assert "pixels" in refusal(service.client.post("/api/matte", files={"image": content}), 413)
    archive = b"PK\3\4" + bytes(5000)
    refusal(service.client.post("/api/matte", files={"image": archive}), 422)
    packed = service.client.post("/api/matte", content=bytes(100), headers={"Content-Encoding": "gzip"})
    refusal(packed, 422)
    assert time.monotonic() - started_s < 5


def test_too_many_fields_and_files_are_refused(service):
    fields = {f"field{number}": "x" for number in range(10_000)}
    refusal(service.client.post("/api/remove", data=fields), 400)
    many = [(f"file{number}", b"x") for number in range(1100)]
    refusal(service.client.post("/api/matte", files=many), 400)
    refusal(service.client.post("/api/matte", files=pair().files, data={"background": "x" * 250_000}), 422)


def test_a_stated_length_above_the_limit_is_refused_at_once(service):
    head = f"POST /api/matte HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    answer = service.send_raw(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    for lengths in ("Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 0x10"):
        assert service.send_raw(f"{head}{lengths}\r\n\r\n".encode()).startswith(b"HTTP/1.1 400 ")


def test_a_slow_upload_is_ended(service):
    head = f"POST /api/matte HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000\r\n\r\n--x\r\n"
    started_s = time.monotonic()
    assert service.send_raw((head + form).encode()).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nHost: local", None])
def test_a_connection_without_a_complete_head_is_closed(tmp_path, monkeypatch, start):
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    gate = Gate()
    with running(tmp_path, predict=gate) as service, ThreadPoolExecutor() as pool:
        answer = pool.submit(service.matte, pair().files)
        with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
            if start is None:  # the second head on a connection that has been of use
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                while not connection.recv(4096).endswith(b"}"):
                    pass
                start = b"GET "
            connection.sendall(start)
            assert connection.recv(1) == b""
        gate.is_open.set()
        assert answer.result().status_code == 200  # whoever has asked may wait longer


def test_silent_connections_cannot_keep_others_out(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    with running(tmp_path) as service, ExitStack() as stack:
        address = ("127.0.0.1", service.port)
        silent = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(9)]
        assert service.client.get("/health").status_code == 200
        assert [connection.recv(1) for connection in silent[:6]] == [b""] * 6
        silent[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in silent[-1].recv(4096)


def test_broken_heads_are_refused(service):
    for head in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000,
    ):
        assert b"HTTP/1.1 4" in service.send_raw(head)
    both = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n"
    assert not service.send_raw(both).startswith(b"HTTP/1.1 2")


def test_websockets_are_refused(service):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    answer = service.send_raw(head + key)
    assert not answer.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    "path",
    [
        "/static-offline-docs/../../../../etc/passwd",
        "/static-offline-docs/..%2f..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/docs/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_path_leads_out_of_what_is_served(service, path):
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    answer = service.send_raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 404 ") and b"root:" not in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "PATCH", "GET"])
def test_other_methods_are_refused(service, method):
    refusal(service.client.request(method, "/api/matte"), 405)


def test_open_requests_are_limited(tmp_path):
    gate = Gate()
    rules = Rules(max_requests=3)
    with running(tmp_path, rules, predict=gate, max_waiting=9) as service, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(service.matte, pair().files) for _ in range(3)]
        wait_until(lambda: service.queue.num_waiting() == 2)
        answer = service.client.get("/api/info")
        assert (refusal(answer, 503) and answer.headers["retry-after"]) == "5"
        gate.is_open.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
