"""The page in Chromium: every way to a trimap, every tab and download, errors, a phone; and no other host is asked."""

import base64
import json
import shutil
import time
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image

from data.image_io.images import read_image, read_raw, to_uint8, to_uint16
from inference.foreground import cut_out, estimate_foreground, over
from tests.helpers.image_files import wide_profile
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import encoded, page_folder, running, with_page, with_profile
from tools.serving.page import files, work
from tools.serving.security.bodies import BodyLimits
from tools.serving.security.guard import Rules

pytestmark = [
    pytest.mark.slow,
    # Gradio's queue and a new pandas
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting", "ignore:The copy keyword is deprecated"),
]
CHROMIUM = shutil.which("chromium")
EXAMPLE = REPOSITORY / "tools" / "serving" / "page" / "examples" / "coffee.jpg"
GREEN = np.array([0x20, 0xA0, 0x40], np.float32) / 255  # the colour that the page starts with
WAIT_MS = 180_000


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    rules = Rules(body=BodyLimits(20_000_000))
    folder = tmp_path_factory.mktemp("temporary")
    with (
        mock.patch.object(files, "CHECK_S", 1.0),
        running(folder, rules, max_pixels=1_000_000, mount=with_page, max_waiting=16) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        # The sandbox does not start for root, in containers.
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, service):
    """A page that fails the test if it asks another host, or if a script fails."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(WAIT_MS)
    hosts, faults = set(), []
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    tab.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(service.url)
    tab.wait_for_selector("#upload input[type=file]", state="attached")
    yield tab
    context.close()
    assert hosts <= {urlsplit(service.url).netloc, ""} and faults == []


def open_file(page, path):
    page.set_input_files("#upload input[type=file]", str(path))
    page.wait_for_selector("#clicks img")


def paste(page, path):
    """Paste a file as a browser does on Ctrl+V: playwright's own keys reach no clipboard of files."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """content => {
          const clipboardData = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
          clipboardData.items.add(new File([bytes], "image.png", {type: "image/png"}));
          document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
        }""",
        content,
    )
    page.wait_for_selector("#clicks img")


def changed(page, selector, act):
    """Act, and wait until an image has another address."""
    before = page.get_attribute(selector, "src") if page.locator(selector).count() else None
    act()
    page.wait_for_function(
        "([selector, before]) => { const image = document.querySelector(selector);"
        " return image && image.src && image.src !== before && image.complete }",
        arg=[selector, before],
    )


def click_on(page, label, x, y):
    """Click on a pixel of the picture, which the page may show smaller."""
    page.locator("#label").get_by_label(label).check()
    image = page.locator("#clicks img")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    width = image.evaluate("image => image.naturalWidth")
    scale = box["width"] / width

    def act():
        page.mouse.click(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)

    changed(page, "#clicks img", act)


def matte(page):
    changed(page, "#cutout img", lambda: page.click("#matte"))


def download(page, name, folder):
    with page.expect_download() as started:
        page.click(f"#download_{name}")
    path = folder / f"{name}.png"
    started.value.save_as(path)
    return read_raw(path)


def test_a_16_bit_photograph_through_the_whole_page(page, service, tmp_path):
    image = cv2.resize(cv2.imread(str(EXAMPLE))[:, :, ::-1], (1400, 700)).astype(np.uint16) * 257
    image[::2] += 9 * (image[::2] < 65000).astype(np.uint16)
    (tmp_path / "photograph.png").write_bytes(encoded(image))
    open_file(page, tmp_path / "photograph.png")
    changed(page, "#clicks img", lambda: page.click("#find"))
    click_on(page, "subject", 640, 256)
    click_on(page, "background", 20, 40)
    points = np.array(json.loads(page.input_value("#points textarea")))
    assert abs(points - [[700, 280, 1], [21, 44, 0]]).max() <= 3  # px, where one of the screen is about three
    paint(page)
    page.get_by_role("tab", name="Click").click()
    page.get_by_role("tab", name="Paint").click()
    with page.expect_response(lambda answer: "drawn" in answer.url):
        page.click("#apply")
    page.get_by_role("tab", name="Click").click()
    page.locator("#bits").get_by_label("16").check()
    matte(page)
    trimap = download(page, "trimap", tmp_path)
    scale = 1400 / 1280
    assert trimap.shape == (700, 1400) and trimap[round(256.5 * scale), round(640.5 * scale)] == 255
    assert trimap[round(40.5 * scale), round(20.5 * scale)] == 0
    assert {*np.unique(trimap)} == {0, 128, 255}
    alpha = service.predictor.predict(image, trimap)
    foreground = estimate_foreground(image, alpha)
    assert (download(page, "alpha", tmp_path) == to_uint16(alpha)).all()
    assert (download(page, "cut-out", tmp_path) == to_uint16(cut_out(foreground, alpha))).all()
    assert (download(page, "composite", tmp_path) == to_uint8(over(foreground, alpha, GREEN))).all()
    with page.expect_popup() as opened:  # to zoom to pixels
        page.locator("#cutout img").click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("document.images[0].naturalWidth") == 1400
    for name, selector in (
        ("Alpha", "#alpha img"),
        ("Composite", "#composite img"),
        ("Compare", "#slider img"),
    ):
        page.get_by_role("tab", name=name, exact=True).click()
        page.locator(selector).first.wait_for()


def paint(page):
    """Paint a stroke of the subject in the middle of the editor."""
    page.get_by_role("tab", name="Paint").click()
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.locator("#apply").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.45 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.5 * box["height"], steps=12)
    page.mouse.up()
    page.wait_for_timeout(500)


def test_the_editor_shows_the_trimap_again_after_strokes_were_matted(page, monkeypatch):
    quick = work.matte
    monkeypatch.setattr(work, "matte", lambda *arguments: (time.sleep(12), quick(*arguments))[1])
    changed(page, "#clicks img", lambda: page.locator("#examples button").first.click())
    changed(page, "#clicks img", lambda: page.click("#find"))
    paint(page)
    matte(page)
    for words in ("left", "waiting", "nearly done"):
        page.locator("#editor").get_by_text(words).wait_for(state="detached", timeout=10_000)


def test_errors_a_mask_a_second_photograph_and_a_phone(page, service, tmp_path):
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.querySelectorAll('#results [role=tab]').length == 4")  # none behind "..."
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    (tmp_path / "words.png").write_bytes(b"words")
    page.set_input_files("#upload input[type=file]", str(tmp_path / "words.png"))
    page.get_by_text("cannot read the photograph: not an image").first.wait_for()
    page.reload()
    page.wait_for_selector("#upload input[type=file]", state="attached")
    changed(page, "#clicks img", lambda: page.locator("#examples button").first.click())
    image = to_uint8(read_image(EXAMPLE))[:200, :300]
    (tmp_path / "second.png").write_bytes(with_profile(image, wide_profile()))
    page.reload()
    page.wait_for_selector("#upload input[type=file]", state="attached")
    paste(page, tmp_path / "second.png")
    page.click("#matte")
    page.get_by_text("There is no trimap yet").first.wait_for()
    mask = np.zeros((200, 300), np.uint8)
    mask[60:140, 90:220] = 255
    (tmp_path / "mask.png").write_bytes(encoded(mask))
    page.get_by_role("tab", name="Mask or trimap").click()
    page.set_input_files("#file input[type=file]", str(tmp_path / "mask.png"))
    page.get_by_role("tab", name="Click").click()
    page.wait_for_timeout(2000)
    matte(page)
    trimap = download(page, "trimap", tmp_path)
    alpha = service.predictor.predict(read_image(tmp_path / "second.png"), trimap)  # the network sees sRGB
    assert (download(page, "alpha", tmp_path) == to_uint8(alpha)).all()
    download(page, "cut-out", tmp_path)
    with Image.open(tmp_path / "cut-out.png") as cutout:
        assert cutout.info["icc_profile"] == wide_profile()


def test_points_are_given_by_the_keyboard_alone(page):
    example, points = page.locator("#examples button").first, page.locator("#points textarea")
    example.focus()
    changed(page, "#clicks img", lambda: example.press("Enter"))
    points.fill("[[9, 9, 0], [150, 90, 1]]")
    changed(page, "#clicks img", lambda: points.press("Enter"))
    points.fill("[[9999, 9, 0]]")
    points.press("Enter")
    page.get_by_text("lies outside the photograph").first.wait_for()
    undo = page.locator("#undo")
    undo.focus()
    changed(page, "#clicks img", lambda: undo.press("Enter"))
    assert points.input_value() == ""


def test_the_page_of_the_api_asks_no_other_host(page, service):
    page.goto(f"{service.url}/docs")
    page.locator(".opblock").first.wait_for()


def test_files_go_soon_after_the_browser_leaves(browser, service, monkeypatch):
    monkeypatch.setattr(files, "LEFT_S", 0.0)
    earlier = {*page_folder().glob("session_*")}  # of other tests, which may stay for two minutes
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(service.url)
    open_file(tab, EXAMPLE)
    before = {*page_folder().glob("session_*")} - earlier
    assert before
    context.close()
    tab = browser.new_page()
    for _ in range(300):
        if not before & {*page_folder().glob("session_*")}:
            break
        tab.wait_for_timeout(200)
    assert not before & {*page_folder().glob("session_*")}
    assert Path(EXAMPLE).exists()
