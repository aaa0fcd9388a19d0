"""Guard the whole application, the page's routes included: who may ask, from where, how much, and how fast."""

import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serving.errors import RefusedError
from tools.serving.security.bodies import BodyLimits, LimitedBody
from tools.serving.security.login import COOKIE, FIELD, login_page

logger = logging.getLogger(__name__)

FREE_PATH, LOGIN_PATH = "/health", "/login"
STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat/")
"""Starts of the paths of the page's event streams, which stay open."""

CLOSED = tuple(
    f"/gradio_api/{name}"
    for name in ("proxy=", "file=http", "file/http", "call", "run", "api", "vibe", "dev", "process_recording")
)
"""Starts of the paths of Gradio that the page does not use: fetching URLs, calls by programs, development."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # The page has inline scripts and styles. It asks no other host, and this makes the browser refuse it.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
}
READABLE_HEADERS = "Server-Timing, X-Image-Width, X-Image-Height, X-Ignored-Parameters, Retry-After"


@dataclass(frozen=True)
class Rules:
    """What the guard lets pass.

    Attributes:
        hosts: names in the Host header beside localhost and IP addresses.
        origins: other origins whose pages may ask, such as "chrome-extension://ID".
        token: that a client must know; None for no token.
        body: limits of each request's body.
        max_streams: event streams that may be open.
        max_requests: other requests that may run.
    """

    hosts: Collection[str] = ()
    origins: Collection[str] = ()
    token: str | None = None
    body: BodyLimits = field(default_factory=BodyLimits)
    max_streams: int = 64
    max_requests: int = 128


class Guard:
    """ASGI middleware around an application. It is the outermost, so that errors get its headers too."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules
        self._session = secrets.token_urlsafe(32)  # a cookie with it shows that its browser knew the token
        self._open = {True: 0, False: 0}  # is an event stream -> how many

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        origin = self._allowed_origin(Headers(scope=scope))
        answer = _Answer(scope, send, origin)
        body = LimitedBody(receive, self.rules.body)
        try:
            self._check_source(scope, origin)
            if origin is not None and scope["method"] == "OPTIONS":
                return await answer.preflight()
            if scope["path"] == LOGIN_PATH and scope["method"] == "POST" and self.rules.token:
                return await self._log_in(scope, body, answer)
            if scope["path"] != FREE_PATH and not self._is_known(scope):
                return await answer.ask_for_token()
            if scope["path"].startswith(CLOSED):
                raise RefusedError(403, "this route of Gradio is closed; programs use /api")
            body.check_length(Headers(scope=scope))
            await self._run(scope, body, answer)
        except RefusedError as refusal:
            await body.drain(Headers(scope=scope))
            await answer.refuse(refusal)

    async def _run(self, scope: Scope, body: LimitedBody, answer: "_Answer") -> None:
        """Call the application, unless too many requests are open."""
        is_stream = scope["path"].startswith(STREAMS)
        if self._open[is_stream] >= (self.rules.max_streams if is_stream else self.rules.max_requests):
            raise RefusedError(503, "too many requests are open: try again later", retry_after_s=5)
        self._open[is_stream] += 1
        body.answers_with(answer)
        try:
            await self.app(scope, body.receive, answer.send)
        except Exception:
            # The application has logged and answered it, unless the client sent a body that is refused.
            if not answer.has_begun and not body.refusal:
                raise
        finally:
            self._open[is_stream] -= 1
        if body.refusal and not answer.has_begun:
            raise body.refusal

    def _check_source(self, scope: Scope, origin: str | None) -> None:
        """Refuse another Host (DNS rebinding), and requests that pages of other sites make.

        Source: Fetch Metadata Request Headers, W3C; browsers send Sec-Fetch-*, programs do not.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._is_own_host(host):
            raise RefusedError(421, "this host name is not served; start the server with --allow-host NAME to serve it")
        is_own = _is_own_origin(headers.get("origin"), host)
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
        is_visit = mode == "navigate" and scope["method"] == "GET"
        if origin is None and (not is_own or (site not in ("same-origin", "none") and not is_visit)):
            raise RefusedError(403, "a page of another site asks; --allow-origin ORIGIN would let it")

    def _is_own_host(self, host: str) -> bool:
        """Tell whether a Host header names this server. An attacker cannot point an IP address at another machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name == "localhost" or name in self.rules.hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _allowed_origin(self, headers: Headers) -> str | None:
        given = headers.get("origin")
        return given if given in self.rules.origins else None

    def _is_known(self, scope: Scope) -> bool:
        """Tell whether the client knows the token, in constant time."""
        if self.rules.token is None:
            return True
        connection = HTTPConnection(scope)
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        knows_token = scheme.lower() == "bearer" and _is_equal(token.strip(), self.rules.token)
        return knows_token | _is_equal(connection.cookies.get(COOKIE, ""), self._session)

    async def _log_in(self, scope: Scope, body: LimitedBody, answer: "_Answer") -> None:
        """Set the cookie of a browser whose form has the token."""
        form = parse_qs((await body.read(4096)).decode("latin-1"))
        if not _is_equal(form.get(FIELD, [""])[0].strip(), self.rules.token or ""):
            return await answer.ask_for_token("This is not the token.")
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={self._session}; Path=/; HttpOnly; SameSite=Strict{secure}"
        await answer.whole(303, b"", {"Location": "/", "Set-Cookie": cookie})


def _is_own_origin(given: str | None, host: str) -> bool:
    try:
        return given is None or urlsplit(given).netloc.lower() == host
    except ValueError:  # "http://[" for instance
        return False


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


class _Answer:
    """Sends an answer with the guard's headers."""

    def __init__(self, scope: Scope, send: Send, origin: str | None) -> None:
        self.scope = scope
        self.origin = origin
        self.has_begun = False
        self.is_dropped = False
        self._send = send

    async def send(self, message: Message) -> None:
        """Send what the application answers."""
        if self.is_dropped:
            return
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            if self.scope["path"].startswith("/api/"):
                headers["Cache-Control"] = "no-store"
            if self.origin is not None:
                headers["Access-Control-Allow-Origin"] = self.origin
                headers["Access-Control-Expose-Headers"] = READABLE_HEADERS
                headers.add_vary_header("Origin")
        await self._send(message)

    async def whole(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send a complete answer of the guard."""
        self.is_dropped = False
        listed = {**headers, "Content-Length": str(len(content))}
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in listed.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": content})

    async def refuse(self, refusal: RefusedError) -> None:
        """Answer with a refusal as JSON, and close the connection: its body may not have been read."""
        if self.has_begun:
            return
        logger.info("%s %r: %s %s", self.scope["method"], self.scope["path"], refusal.status, refusal)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if refusal.retry_after_s:
            headers["Retry-After"] = str(refusal.retry_after_s)
        await self.whole(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)

    async def ask_for_token(self, reason: str = "") -> None:
        """Answer a browser with a form, and a program with JSON."""
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        if "text/html" in Headers(scope=self.scope).get("accept", ""):
            await self.whole(401, login_page(reason), {**headers, "Content-Type": "text/html; charset=utf-8"})
        else:
            words = json.dumps({"error": "send the token: 'Authorization: Bearer TOKEN'"}).encode()
            await self.whole(401, words, {**headers, "Content-Type": "application/json"})

    async def preflight(self) -> None:
        """Answer the question of a browser whether an allowed origin may ask."""
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "600",
        }
        await self.whole(200, b"", headers)
