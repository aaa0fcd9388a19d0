"""The form that asks a browser for the token."""

from html import escape

COOKIE = "matting_session"
FIELD = "token"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }}
body {{ max-width: 22rem; margin: 20vh auto; padding: 0 1rem; }}
input, button {{ font: inherit; padding: .5rem; width: 100%; box-sizing: border-box; margin-top: .5rem; }}
</style>
<form method="post" action="/login">
<label for="token">Token of this server</label>
<input id="token" name="{field}" type="password" autocomplete="current-password" required autofocus>
<button>Open</button>
<p role="alert">{reason}</p>
</form>
</html>
"""


def login_page(reason: str) -> bytes:
    """Make the form.

    Args:
        reason: why it is shown again; "" at first.
    """
    return PAGE.format(field=FIELD, reason=escape(reason)).encode()
