"""The service: every answer is what `Predictor` gives, every bad request gets its status, and nothing stays behind."""

import errno
import logging
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image

from data.image_io.exr import SceneLinear, encode_exr
from data.image_io.images import to_uint8, to_uint16
from data.image_io.light import to_light
from data.trimap import STORED_VALUES, trimap_from_mask
from inference.auto import subject
from inference.auto.clicks import trimap_of_clicks
from inference.foreground import cut_out, estimate_foreground, over
from tests.helpers.image_files import wide_profile
from tests.helpers.serving import (
    MAX_BYTES,
    MAX_PIXELS,
    Gate,
    bomb,
    decoded,
    encoded,
    pair,
    running,
    wait_until,
    with_profile,
)
from tools.serving.matting import lay_over
from tools.serving.prediction_queue import PredictionQueue
from tools.serving.security.guard import Rules


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("temporary")) as started:
        yield started


@pytest.fixture(autouse=True)
def finds_the_lower_part(monkeypatch):
    """Replace the saliency network, which is slow."""

    def trimap_of_subject(image, width_percent, name):
        trimap = np.full(image.shape[:2], 0.5, np.float32)
        trimap[: len(trimap) // 4], trimap[-len(trimap) // 4 :] = 0, 1
        return trimap

    monkeypatch.setattr(subject, "trimap_of_subject", trimap_of_subject)


def expected_alpha(service, image, trimap):
    return service.predictor.predict(image, trimap)


def mask_of(image):
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[20:] = 255
    return mask


def test_alpha_equals_the_predictor_with_its_size_and_timing(service):
    given = pair()
    answer = service.matte(given.files)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert (decoded(answer.content) == to_uint8(expected_alpha(service, *given))).all()
    assert (answer.headers["x-image-width"], answer.headers["x-image-height"]) == ("56", "40")
    assert re.fullmatch(r"read;dur=[\d.]+, matte;dur=[\d.]+, encode;dur=[\d.]+", answer.headers["server-timing"])


def test_points_grow_to_a_trimap(service):
    image = pair().image
    answer = service.client.post(
        "/api/trimap", files={"image": encoded(image)}, data={"points": "[[30, 30, 1], [3, 3, 0]]", "width_px": "4"}
    )
    expected = trimap_of_clicks(image, 4, [(30, 30, 1), (3, 3, 0)])
    assert (decoded(answer.content) == np.ceil(255 * expected)).all()


def test_16_bit_in_and_out(service):
    given = pair()
    image = given.image.astype(np.uint16) * 257 + 3 * (given.image < 200).astype(np.uint16)
    answer = service.matte(given.files | {"image": encoded(image)}, bits="16")
    alpha = decoded(answer.content)
    assert alpha.dtype == np.uint16
    assert (alpha == to_uint16(expected_alpha(service, image, given.trimap))).all()


def test_an_exr_is_matted_as_a_display_shows_it_and_within_the_limit_of_pixels(service):
    given = pair()
    light = SceneLinear(3 * to_light(given.image / np.float32(255)))
    channels = {name: light.values[..., index] for index, name in enumerate("RGB")}
    answer = service.matte(given.files | {"image": encode_exr(channels, light, 32)})
    assert (decoded(answer.content) == to_uint8(expected_alpha(service, light.shown(), given.trimap))).all()
    large = np.zeros((1, MAX_PIXELS + 1))
    answer = service.matte(given.files | {"image": encode_exr({"Y": large}, SceneLinear(large))})
    assert answer.status_code == 413


def test_a_mask_gives_a_cut_out_with_clean_colours(service):
    image = pair().image
    mask = mask_of(image)
    answer = service.matte({"image": encoded(image), "mask": encoded(mask)}, width_px="9")
    alpha = expected_alpha(service, image, trimap_from_mask(mask, 9))
    floats = image.astype(np.float32) / 255
    assert (decoded(answer.content) == to_uint8(cut_out(estimate_foreground(floats, alpha), alpha))).all()


@pytest.mark.parametrize("format", ["png", "tif", "webp", "jpg"])
def test_composites_over_a_colour_and_an_image(service, format):
    given = pair()
    alpha = expected_alpha(service, *given)
    foreground = estimate_foreground(given.image.astype(np.float32) / 255, alpha)
    behind = pair(30, 30, seed=5).image
    for fields, files, background in (
        ({"background": "#ff8000"}, {}, np.array([255, 128, 0]) / 255),
        ({}, {"background_image": encoded(behind)}, behind),
    ):
        answer = service.matte(given.files | files, format=format, **fields)
        assert answer.status_code == 200, answer.text
        expected = to_uint8(over(foreground, alpha, background))
        differs = np.abs(decoded(answer.content).astype(int) - expected)
        assert differs.max() == 0 if format != "jpg" else differs.mean() < 12


def test_a_cut_out_keeps_the_profile_of_the_photograph(service):
    given = pair()
    content = with_profile(given.image, wide_profile())
    answer = service.matte({**given.files, "image": content}, **{"as": "rgba"})
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.mode, image.info["icc_profile"]) == ("RGBA", wide_profile())


def test_the_trimap_of_a_mask_and_of_what_is_found(service):
    image = pair().image
    mask = mask_of(image)
    answer = service.client.post("/api/trimap", files={"image": encoded(image), "mask": encoded(mask)})
    trimap = decoded(answer.content)
    assert (trimap == np.ceil(255 * trimap_from_mask(mask, 2))).all()
    found = decoded(service.client.post("/api/trimap", files={"image": encoded(image)}).content)
    assert np.unique(found).tolist() == list(STORED_VALUES)
    alpha = expected_alpha(service, image, found)
    answer = service.matte({"image": encoded(image)}, **{"as": "alpha"})
    assert (decoded(answer.content) == to_uint8(alpha)).all()


IMAGE = pair().files["image"]
TRIMAP = pair().files["trimap"]
BAD = {
    "no image": ({"trimap": TRIMAP}, {}, 422, "image: Field required"),
    "no file": ({"image": b"words"}, {}, 422, "cannot read image: not an image"),
    "an empty file": ({"image": b""}, {}, 422, "cannot read image"),
    "cut off": ({"image": IMAGE[:-500], "trimap": TRIMAP}, {}, 422, "cannot read image: "),
    "a JPEG XL file": ({"image": b"\xff\x0a" + bytes(9)}, {}, 422, "JPEG XL"),
    "a damaged HEIC file": ({"image": b"\0\0\0\x18ftypheic" + bytes(9)}, {}, 422, "not an image"),
    "another size": ({"image": IMAGE, "trimap": encoded(pair(9, 9).trimap)}, {}, 422, "trimap"),
    "a mask as trimap": ({"image": IMAGE, "trimap": encoded(mask_of(pair().image))}, {}, 422, "trimap"),
    "two ways": ({"image": IMAGE, "trimap": TRIMAP, "mask": TRIMAP}, {}, 422, "give one of"),
    "no points": ({"image": IMAGE}, {"points": "[[1, 2]]"}, 422, "expected three numbers"),
    "a point outside": ({"image": IMAGE}, {"points": "[[1, 2, 1], [900, 2, 0]]"}, 422, "900"),
    "a width without a mask": ({"image": IMAGE}, {"width_px": 3}, 422, "for a mask"),
    "a width below 1": ({"image": IMAGE, "mask": TRIMAP}, {"width_px": 0}, 422, "width_px: Input should be"),
    "an unknown kind": ({"image": IMAGE}, {"as": "gif"}, 422, "as: Input should be"),
    "12 bit": ({"image": IMAGE}, {"bits": 12}, 422, "bits: "),
    "no such colour": ({"image": IMAGE}, {"background": "/etc/passwd"}, 422, "background: no such colour"),
    "a composite without a background": ({"image": IMAGE}, {"as": "composite"}, 422, "a composite needs"),
    "a cut-out as JPEG": ({"image": IMAGE, "trimap": TRIMAP}, {"as": "rgba", "format": "jpg"}, 422, "result.jpg"),
    "a bomb": ({"image": bomb()}, {}, 413, "pixels"),
    "a bomb of a size that Pillow allows": ({"image": bomb(200, 200)}, {}, 413, f"{MAX_PIXELS} pixels at most"),
    "a bomb as trimap": ({"image": IMAGE, "trimap": bomb(9000, 9000)}, {}, 413, "trimap is 9000 x 9000 px"),
    "a bomb as background": ({"image": IMAGE, "background_image": bomb(9000, 9000)}, {}, 413, "background is"),
    "too many bytes": ({"image": bytes(MAX_BYTES + 1)}, {}, 413, f"{MAX_BYTES} bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_line_without_paths(service, name):
    files, data, status, words = BAD[name]
    answer = service.matte(files, **data)
    assert (answer.status_code, [*answer.json()]) == (status, ["error"])
    assert words in answer.json()["error"]
    assert str(service.folder) not in answer.text and "\n" not in answer.json()["error"]


def test_a_chunked_body_is_cut_at_the_limit(service):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    parts = [b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n', *[bytes(50_000)] * 20]
    answer = service.client.post("/api/matte", content=iter(parts), headers=headers)
    assert (answer.status_code, [*answer.json()]) == (413, ["error"])


def test_a_form_that_cannot_be_read_is_400(service):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = service.client.post("/api/matte", content=b"--y\r\n", headers=headers)
    assert (answer.status_code, [*answer.json()]) == (400, ["error"])


def test_nothing_stays_in_the_temporary_folder(service):
    service.matte(pair().files)
    service.matte({"image": b"words"})
    assert [*service.folder.iterdir()] == []


def test_info_health_and_a_page_that_loads_nothing_from_elsewhere(service):
    info = service.client.get("/api/info").json()
    assert (info["model"], info["limits"]["max_pixels"]) == ("tiny", MAX_PIXELS)
    assert service.client.get("/health").json() == {"status": "ok"}
    page = service.client.get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert files == ["/static-offline-docs/swagger-ui.css", "data:,", "/static-offline-docs/swagger-ui-bundle.js"]
    assert all(service.client.get(file).status_code == 200 for file in files if file.startswith("/"))
    paths = service.client.get("/openapi.json").json()["paths"]
    assert [*paths] == ["/api/matte", "/api/trimap", "/api/info", "/health", "/api/remove"]


def test_a_full_queue_and_a_client_that_leaves(tmp_path):
    gate = Gate()
    with running(tmp_path, predict=gate, max_waiting=1) as service, ThreadPoolExecutor() as pool:
        first = pool.submit(service.matte, pair().files)
        wait_until(lambda: gate.num_begun == 1)
        leaving = httpx.Client(base_url=service.url, timeout=0.5)
        with pytest.raises(httpx.ReadTimeout):
            leaving.post("/api/matte", files=pair().files)
        wait_until(lambda: service.queue.num_waiting() == 0)
        second = pool.submit(service.matte, pair().files)
        wait_until(lambda: service.queue.num_waiting() == 1)
        refused = service.matte(pair().files)
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
        gate.is_open.set()
        assert [first.result().status_code, second.result().status_code, gate.num_begun] == [200, 200, 2]


def test_the_queue_keeps_no_result_when_its_job_has_ended():
    queue = PredictionQueue(max_waiting=1)
    result = weakref.ref(queue.submit(lambda: np.zeros(10)).result())
    wait_until(lambda: queue.is_idle() and result() is None)
    queue.close()


def test_the_end_refuses_waiting_jobs_and_lets_the_running_one_finish(tmp_path):
    gate = Gate()
    with running(tmp_path, predict=gate) as service, ThreadPoolExecutor() as pool:
        first = pool.submit(service.matte, pair().files)
        wait_until(lambda: gate.num_begun == 1)
        second = pool.submit(service.matte, pair().files)
        wait_until(lambda: service.queue.num_waiting() == 1)
        service.server.should_exit = True
        assert second.result().status_code == 503
        assert service.matte(pair().files).status_code == 503
        assert service.client.get("/health").status_code == 503
        gate.is_open.set()
        assert first.result().status_code == 200


def test_the_running_job_is_given_up_after_the_grace(tmp_path):
    gate = Gate()
    with running(tmp_path, predict=gate, grace_s=0.2) as service, ThreadPoolExecutor() as pool:
        first = pool.submit(service.matte, pair().files)
        wait_until(lambda: gate.num_begun == 1)
        service.server.should_exit = True
        assert first.result().status_code == 503
        gate.is_open.set()


def test_an_error_of_ours_is_500_with_an_id_that_the_log_has(tmp_path, caplog):
    def predict(image, trimap):
        raise ZeroDivisionError("a bug")

    with running(tmp_path, predict=predict) as service, caplog.at_level(logging.INFO):
        answer = service.matte(pair().files)
        assert answer.status_code == 500 and "bug" not in answer.text
        number = answer.json()["error"].split()[-1]
        (record,) = [record for record in caplog.records if number in record.message and record.exc_info]
        assert "ZeroDivisionError: a bug" in caplog.text
        assert answer.headers["x-frame-options"] == "DENY"
        assert service.client.get("/health").status_code == 200


def test_no_memory_is_413_and_a_full_disk_507(tmp_path, monkeypatch):
    def predict(image, trimap):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with running(tmp_path, predict=predict) as service:
        assert service.matte(pair().files).status_code == 413
        for place in ("tools.serving.matting.shutil.copyfileobj", "starlette.formparsers.SpooledTemporaryFile"):
            with monkeypatch.context() as patch:
                patch.setattr(place, full)
                assert service.matte(pair().files).status_code == 507
        assert service.client.get("/health").status_code == 200


def test_a_disk_that_fills_at_any_step_is_507_and_leaves_nothing(tmp_path):
    """The system's limit of a file's length stands for the end of the disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    small, large = pair(200, 300).files, pair(700, 700).files  # a form of more than 1 MB goes to the disk itself
    with running(tmp_path, Rules(), max_pixels=10**6, predict=lambda image, trimap: trimap) as service:
        cases = [(large, 100_000, "png"), (small, 100_000, "png")]  # the form, the copy of an upload
        cases += [(small, len(small["image"]), format) for format in ("png", "tif")]  # the result
        for files, limit_bytes, format in cases:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
            try:
                status = service.matte(files, **{"as": "rgba"}, bits="16", format=format).status_code
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert status == 507
            assert [*tmp_path.iterdir()] == []
        assert service.matte(small, **{"as": "rgba"}, bits="16").status_code == 200


def test_many_clients_at_once_get_their_own_images(service):
    pairs = [pair(24 + 4 * number, 40, number) for number in range(4)]
    with ThreadPoolExecutor() as pool:
        answers = [*pool.map(lambda given: service.matte(given.files), pairs)]
    for given, answer in zip(pairs, answers, strict=True):
        assert (decoded(answer.content) == to_uint8(expected_alpha(service, *given))).all()


def test_remove_takes_and_returns_what_rembg_does(service):
    image = pair().image
    trimap = subject.trimap_of_subject(image, 3, "")
    alpha = expected_alpha(service, image, trimap)
    foreground = estimate_foreground(image.astype(np.float32) / 255, alpha)

    def remove(query="", **data):
        return service.client.post(f"/api/remove{query}", files={"file": encoded(image)}, data=data)

    assert (decoded(remove().content) == to_uint8(cut_out(foreground, alpha))).all()
    for answer in (remove("?om=true"), remove(om="true"), remove(om="true", bgc="1,2,3")):
        assert (decoded(answer.content) == to_uint8(alpha)).all()
    expected = to_uint8(over(foreground, alpha, np.array([255, 0, 51]) / 255))
    for answer in (remove("?bgc=255,0,51,255"), remove(bgc="255,0,51")):
        pixels = decoded(answer.content)
        assert np.abs(pixels[:, :, :3].astype(int) - expected).max() <= 1 and (pixels[:, :, 3] == 255).all()
    accepted = remove("?a=true&af=240&ab=10&ae=10&vm=true&dc=1&ppm=on", model="u2net", extras="{}")
    assert (accepted.status_code, accepted.headers["x-ignored-parameters"]) == (200, "model, extras")
    for refused, words in ((remove(bgc="red"), "bgc"), (remove("?af=much"), "af"), (remove(bgc="1,2,300"), "bgc")):
        assert refused.status_code == 422 and words in refused.json()["error"]
    without = service.client.post("/api/remove", data={"url": "http://127.0.0.1/"})
    assert without.status_code == 422 and "no URLs" in without.text
    assert service.client.get("/api/remove?url=http://127.0.0.1/").status_code == 400


def test_a_transparent_colour_lies_behind_the_subject():
    foreground = np.full((1, 3, 3), 0.5, np.float32)
    rgba = lay_over(foreground, np.array([[0, 0.5, 1]], np.float32), (255, 0, 0, 51))
    assert np.allclose(rgba[0, 0], [1, 0, 0, 0.2]) and np.allclose(rgba[0, 2], [0.5, 0.5, 0.5, 1])
    assert np.allclose(rgba[0, 1, 3], 0.5 + 0.5 * 0.2)
    # Over black, the composite is that of both layers.
    assert np.allclose(rgba[0, 1, :3] * rgba[0, 1, 3], [0.5 * 0.5 + 0.5 * 0.2, 0.25, 0.25])
