"""What the buttons of the page do, without a browser: the trimap of a session's steps, its results, its files."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from data.image_io import images
from data.image_io.images import Colours, DataError, read_raw, to_uint8, to_uint16
from data.trimap import read_trimap, trimap_from_mask
from inference.foreground import cut_out, estimate_foreground, over
from inference.network import TorchNetwork
from inference.predictor import Predictor
from tests.helpers.image_files import wide_profile
from tests.helpers.networks import tiny_model
from tests.helpers.serving import bomb, encoded, pair, with_profile
from tools.serving.errors import TooLargeError
from tools.serving.matting import Matter
from tools.serving.page import files, work
from tools.serving.page.drawing import BRUSHES, NO_STROKE, checkerboard, draw_trimap, paint, read_strokes, reduce
from tools.serving.page.files import Sessions, Strokes
from tools.serving.page.work import (
    FOUND,
    add_file,
    change,
    compose,
    make_trimap,
    matte,
    open_photograph,
    points_of,
    replace_points,
    undo,
)

SUBJECT, BACKGROUND, UNKNOWN = range(3)


@pytest.fixture
def session(tmp_path):
    with Sessions(tmp_path).use("a browser") as held:
        yield held


@pytest.fixture
def growing(monkeypatch):
    """Replace what grows from points and scribbles; it remembers its arguments."""
    calls = []

    def trimap_of_clicks(image, width_px, points, scribbles, name):
        calls.append((width_px, [*points], scribbles))
        return np.full(image.shape[:2], 0.5, np.float32)

    monkeypatch.setattr(work, "trimap_of_clicks", trimap_of_clicks)
    monkeypatch.setattr(work, "trimap_of_subject", lambda image, width, name: pair().trimap / np.float32(255))
    return calls


def opened(session, tmp_path, content=None):
    path = tmp_path / "upload.png"
    path.write_bytes(content or pair().files["image"])
    open_photograph(session, path, 10_000)


def stroke(brush, rows, columns, shape=(40, 56)):
    labels = np.full(shape, NO_STROKE, np.uint8)
    labels[rows, columns] = brush
    return Strokes(labels)


def test_a_16_bit_photograph_with_a_profile_is_matted_as_it_was_uploaded(session, tmp_path, monkeypatch):
    image = pair().image.astype(np.uint16) * 257 + 5 * (pair().image < 200).astype(np.uint16)
    opened(session, tmp_path, encoded(image))
    trimap = tmp_path / "t.png"
    trimap.write_bytes(pair().files["trimap"])
    add_file(session, trimap, False, 10_000, 3)
    predictor = Predictor(TorchNetwork(tiny_model()))
    alpha = predictor.predict(image, pair().trimap)
    results = matte(session, Matter(predictor.alpha, 10_000), 3, 16)
    foreground = estimate_foreground(image, alpha)
    assert (read_raw(results.alpha) == to_uint16(alpha)).all()
    assert (read_raw(results.cutout) == to_uint16(cut_out(foreground, alpha))).all()
    assert (read_raw(results.before) == to_uint8(image / np.float32(65535))).all()
    stored = read_raw(results.trimap)
    assert (stored == np.where(np.isin(pair().trimap, (0, 255)), pair().trimap, 128)).all()
    colour = np.array([0.2, 0.4, 0.6], np.float32)
    assert (read_raw(compose(session, Colours(colour))) == to_uint8(over(foreground, alpha, colour))).all()
    opened(session, tmp_path, with_profile(pair().image, wide_profile()))
    assert compose(session, Colours(colour)) is None and session.steps == []
    session.steps.append(("trimap", trimap))
    decode, decoded = images.read_raw_image, []
    monkeypatch.setattr(images, "read_raw_image", lambda path: decoded.append(path) or decode(path))
    with Image.open(matte(session, Matter(predictor.alpha, 10_000), 3, 8).cutout) as cutout:
        assert cutout.info["icc_profile"] == wide_profile()
    assert decoded == [session.photograph] * 2, "once for the trimap, once for matte and cut-out"


def test_strokes_lie_over_what_was_found(session, tmp_path, growing):
    opened(session, tmp_path)
    assert make_trimap(session, 3) is None
    session.steps.extend([FOUND, stroke(UNKNOWN, slice(0, 3), slice(0, 9)), stroke(SUBJECT, slice(2, 3), slice(0, 4))])
    expected = pair().trimap / np.float32(255)
    expected[:3, :9] = 0.5
    expected[2, :4] = 1
    assert (make_trimap(session, 3) == expected).all() and growing == []
    session.steps.pop()
    expected[2, :4] = 0.5
    assert (make_trimap(session, 3) == expected).all()
    session.steps.append(FOUND)
    assert (make_trimap(session, 3) == pair().trimap / np.float32(255)).all()


def test_points_and_strokes_grow_together(session, tmp_path, growing):
    opened(session, tmp_path)
    session.steps.extend([stroke(BACKGROUND, slice(5, 6), slice(0, 9)), (3.0, 4.0, 1), (7.0, 8.0, 0)])
    trimap = make_trimap(session, 10)
    ((width_px, points, scribbles),) = growing
    assert (width_px, points) == (6, [(3.0, 4.0, 1), (7.0, 8.0, 0)])
    assert (scribbles[5, :9] == 0).all() and (scribbles[6:] == 0.5).all()
    assert (trimap[5, :9] == 0).all()
    session.steps[:] = [FOUND, (3.0, 4.0, 1)]
    make_trimap(session, 10)
    assert growing[1][1:] == ([(3.0, 4.0, 1)], None)


@pytest.mark.parametrize("start", [[], [FOUND]])
def test_a_click_in_an_earlier_stroke_of_another_label_removes_that_part(session, tmp_path, growing, start):
    opened(session, tmp_path)
    strokes = stroke(BACKGROUND, slice(5, 8), slice(0, 9))
    strokes.labels[20:23, :9] = BACKGROUND
    session.steps.extend([*start, (4.0, 21.0, 1), strokes, (50.0, 1.0, 0), (4.0, 6.0, 1), (4.0, 21.0, 0)])
    trimap, ((_, points, scribbles),) = make_trimap(session, 10), growing
    assert len(points) == 4
    for values in (trimap, scribbles):
        assert (values[5:8, :9] == 0.5).all() and (values[20:23, :9] == 0).all()
    session.steps.append((4.0, 400.0, 1))
    make_trimap(session, 10)  # what grows has the words for a point outside


def test_only_unknown_that_is_painted_asks_for_more(session, tmp_path):
    opened(session, tmp_path)
    session.steps.append(stroke(UNKNOWN, slice(5, 6), slice(0, 9)))
    with pytest.raises(DataError, match="Only unknown is painted: paint or click on the subject too"):
        make_trimap(session, 3)


def test_points_correct_a_file_that_was_given(session, tmp_path, growing, monkeypatch):
    opened(session, tmp_path)
    given = tmp_path / "t.png"
    given.write_bytes(pair().files["trimap"])
    calls = []

    def refine_trimap(image, trimap, width_px, points, name):
        calls.append((trimap, width_px, [*points]))
        return 1 - trimap

    monkeypatch.setattr(work, "refine_trimap", refine_trimap)
    session.steps.extend([("trimap", given), (3.0, 4.0, 1), stroke(UNKNOWN, slice(5, 6), slice(0, 9))])
    refined, ((trimap, width_px, points),) = make_trimap(session, 10), calls
    assert (trimap == read_trimap(given)).all() and (width_px, points, growing) == (6, [(3.0, 4.0, 1)], [])
    assert (refined[5, :9] == 0.5).all() and (refined[6:] == 1 - trimap[6:]).all()


def test_edited_points_replace_those_that_have_an_effect():
    strokes = stroke(BACKGROUND, slice(5, 6), slice(0, 9))
    steps = [(1.0, 2.0, 1), FOUND, (3.0, 4.0, 1), strokes, (5.0, 6.0, 0)]
    assert points_of(steps) == [(3.0, 4.0, 1), (5.0, 6.0, 0)]
    assert replace_points(steps, "[[7, 8, 0]]") == [(1.0, 2.0, 1), FOUND, strokes, (7, 8, 0)]
    assert replace_points(steps, "[[5, 6, 0], [3, 4, 1], [7, 8, 0]]") == [*steps, (7, 8, 0)]
    assert replace_points(steps, " ") == [(1.0, 2.0, 1), FOUND, strokes]
    assert replace_points([], "[[7, 8, 0], [9, 9, 1]]") == [(7, 8, 0), (9, 9, 1)]
    with pytest.raises(DataError, match="are no JSON"):
        replace_points(steps, "7, 8")


def test_a_mask_gets_the_band_that_is_chosen(session, tmp_path):
    opened(session, tmp_path)
    mask = np.zeros((40, 56), np.uint8)
    mask[20:] = 255
    (tmp_path / "m.png").write_bytes(encoded(mask))
    add_file(session, tmp_path / "m.png", True, 10_000, 3)
    (tmp_path / "m.png").unlink()
    assert (make_trimap(session, 20) == trimap_from_mask(mask, 11)).all()


def test_what_cannot_be_used_leaves_the_session_as_it_was(session, tmp_path):
    opened(session, tmp_path)
    photograph = session.photograph.read_bytes()
    for content, error, words in (
        (bomb(), TooLargeError, "the photograph: too large|the photograph is"),
        (b"words", DataError, "^cannot read the photograph: not an image"),
    ):
        with pytest.raises(error, match=words):
            opened(session, tmp_path, content)
    bad = tmp_path / "bad.png"
    for content, error, words in (
        (bomb(), TooLargeError, "the trimap"),
        (b"words", DataError, "^cannot read the trimap: not an image"),
        (pair(9, 9).files["trimap"], DataError, "the trimap"),
    ):
        bad.write_bytes(content)
        with pytest.raises(error, match=words):
            add_file(session, bad, False, 10_000, 3)
    assert session.photograph.read_bytes() == photograph and session.history == [[]]
    with pytest.raises(DataError, match="There is no trimap yet"):
        matte(session, Matter(lambda image, trimap: trimap, 10_000), 3, 8)


def test_a_session_needs_a_photograph(session):
    with pytest.raises(DataError, match="There is no photograph yet"):
        make_trimap(session, 3)


def test_undo_takes_back_the_last_change_whatever_it_was(session, tmp_path, growing):
    opened(session, tmp_path)
    first, second = (3.0, 4.0, 1), (7.0, 8.0, 0)
    for steps in ([first], [first, second], [second], []):  # two clicks, an edit of the list, start over
        change(session, steps, 3)
    seen = []
    for _ in range(5):
        assert undo(session, 3).exists()
        seen.append(session.steps)
    assert seen == [[second], [first, second], [first], [], []]


def test_a_change_that_fails_is_taken_back(session, tmp_path, monkeypatch):
    opened(session, tmp_path)
    session.history = [[], [(3.0, 4.0, 1)]]

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(work, "make_trimap", fail)
    for act in (lambda: change(session, [(1.0, 1.0, 0)], 3), lambda: undo(session, 3)):
        with pytest.raises(OSError, match="no space left"):
            act()
        assert session.history == [[], [(3.0, 4.0, 1)]]


def test_a_background_stays_with_the_session_after_its_upload_is_gone(session, tmp_path):
    opened(session, tmp_path)
    upload, other = tmp_path / "behind.png", tmp_path / "other.png"
    upload.write_bytes(pair().files["image"])
    other.write_bytes(pair(seed=1).files["image"])
    work.take_background(session, upload, 10_000)
    upload.unlink()
    assert (to_uint8(work.take_background(session, upload, 10_000).values) == pair().image).all()
    assert (to_uint8(work.take_background(session, other, 10_000).values) == pair(seed=1).image).all()
    for content, error in ((bomb(), TooLargeError), (b"words", DataError)):
        bad = tmp_path / f"{error.__name__}.png"
        bad.write_bytes(content)
        with pytest.raises(error, match="the background"):
            work.take_background(session, bad, 10_000)
    assert len([*session.folder.glob("background_*")]) == 1


def test_the_files_of_a_session_go_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEFT_S", -1.0)
    sessions = Sessions(tmp_path)
    folders = {}
    for name in ("left", "came back", "unused", "used"):
        with sessions.use(name) as session:
            folders[name] = session.folder
    sessions.leave("left")
    sessions.leave("came back")
    sessions.leave("nobody")
    with sessions.use("came back"):
        pass
    sessions._sessions["unused"].ends_s = 0.0
    sessions.close_unused()
    assert {name for name, folder in folders.items() if folder.exists()} == {"came back", "used"}


def test_sessions_share_no_upload(tmp_path):
    """Gradio stores an upload under the hash of its content, so two browsers that send one file get one path."""
    sessions, upload = Sessions(tmp_path), tmp_path / "hash" / "image.png"
    upload.parent.mkdir()
    upload.write_bytes(pair().files["image"])
    for name in ("one", "two"):
        with sessions.use(name) as session:
            open_photograph(session, upload, 10_000)
    sessions._sessions["one"].ends_s = 0.0
    sessions.close_unused()
    assert upload.exists()
    upload.unlink()
    with sessions.use("two") as session:
        assert read_raw(session.photograph).shape == (40, 56, 3)


def test_an_event_that_waits_while_its_session_is_closed_gets_a_new_one(tmp_path):
    sessions, found = Sessions(tmp_path), []
    with sessions.use("a browser") as session:
        pass

    def use():
        with sessions.use("a browser") as late:
            found.append((late, late.folder.exists()))

    with session.lock:
        waiting = threading.Thread(target=use)
        waiting.start()
        time.sleep(0.2)  # until it has the session and waits for its lock
        session.ends_s = 0.0
        sessions._close_if_over("a browser", session)
    waiting.join(10)
    ((late, exists),) = found
    assert exists and late is not session


def test_a_session_in_use_is_not_closed(tmp_path):
    sessions = Sessions(tmp_path)
    with sessions.use("a browser") as session:
        session.ends_s = 0.0
        sessions.close_unused()
        assert session.folder.exists()


def test_files_that_are_in_use_stay_young(tmp_path):
    """Gradio removes files that it has shown by their age, whoever uses them."""
    sessions = Sessions(tmp_path)
    with sessions.use("a browser") as session:
        path = session.new_path("alpha")
        path.write_bytes(b"x")
    before_ns = path.stat().st_ctime_ns
    time.sleep(0.02)
    with sessions.use("a browser"):
        assert path.stat().st_ctime_ns > before_ns


def test_each_brush_is_read_back_from_the_colours_of_the_browser():
    layer = np.zeros((20, 30, 4), np.uint8)
    for number, colour in enumerate(BRUSHES.values()):
        layer[number] = (*colour, 255)
        layer[number, :5, :3] = np.clip(np.array(colour) + 6, 0, 255)  # as WebP blurs them
    layer[10] = (*BRUSHES["subject"], 60)
    labels = read_strokes([layer], (20, 30))
    assert [np.unique(labels[row]).tolist() for row in range(3)] == [[0], [1], [2]]
    assert (labels[3:] == NO_STROKE).all()
    trimap = paint(np.full((60, 90), 0.5, np.float32), labels)
    assert (trimap[:3] == 1).all() and (trimap[3:6] == 0).all() and (trimap[6:] == 0.5).all()
    assert (read_strokes([layer, layer], (40, 60))[:2] == 0).all()
    assert (read_strokes([], (4, 5)) == NO_STROKE).all()


def test_drawings_show_regions_points_and_transparency():
    image = np.full((40, 80, 3), 100, np.uint8)
    trimap = np.zeros((80, 160), np.float32)
    trimap[:, 80:] = 1
    drawn = draw_trimap(image, trimap, [(20.2, 10.4, 1)])
    assert drawn[30, 10].argmax() == 0 and drawn[30, 70].argmax() == 1 and tuple(drawn[10, 20]) == BRUSHES["subject"]
    assert (draw_trimap(image, None, []) == image).all()
    assert reduce(image, 20).shape == (10, 20, 3) and reduce(image, 80) is image
    board = checkerboard(40, 40)
    assert board.shape == (40, 40, 3) and len(np.unique(board)) == 2 and board[0, 0, 0] != board[0, 16, 0]
