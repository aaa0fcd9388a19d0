"""A bug shows its traceback wherever it is; an error of a user stays one line."""

import pytest

import main
from runtime.errors import ConfigError, UserError
from tests.helpers.paths import DEMO
from tests.helpers.training import overrides
from tools import evaluate, make_trimap, predict
from tools.prediction import steps

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")

KINDS = [ValueError, RuntimeError, KeyError, TypeError]

PLACES = {
    "transform": "data.augment.transforms.CompositeImage.__call__",
    "constructor": "modeling.detail_capture.DetailCapture.__init__",
    "network": "modeling.vitmatte.ViTMatte.forward",
    "hook": "engine.hooks.metrics.WriteMetrics.after_step",
}

TRACEBACK = "Traceback (most recent call last)"


def inject(monkeypatch, place, error):
    def slip(*_, **__):
        raise error

    monkeypatch.setattr(place, slip)


def train(data, output, **changes):
    main.main(["--config-file", DEMO, *overrides(data, output, **{"train.device": "cpu", **changes})])


@pytest.mark.parametrize(("place", "kind"), list(zip(PLACES, KINDS, strict=True)))
def test_a_bug_in_a_run_shows_its_traceback(place, kind, data, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, PLACES[place], kind("a slip of ours"))
    with pytest.raises(kind, match="a slip of ours") as raised:  # for which Python ends with status 1
        train(data, tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert text.count(TRACEBACK) == 1 and f"{kind.__name__}: " in text and "in slip" in text
        assert ("model.decoder of the config" in text) == (place == "constructor")
    assert hasattr(raised.value, "__notes__") == (place == "constructor")


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_a_user_in_a_run_is_one_line(place, data, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, PLACES[place], UserError("photo.png is damaged"))
    with pytest.raises(SystemExit) as ended:
        train(data, tmp_path)
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.err.count("\n") == 1 and said.err.endswith(": photo.png is damaged\n")
    assert TRACEBACK not in said.out + (tmp_path / "log.txt").read_text()


def test_a_setting_that_a_constructor_refuses_is_one_line_with_its_key(data, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, PLACES["constructor"], ConfigError("too wide"))
    with pytest.raises(SystemExit) as ended:
        train(data, tmp_path)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.endswith(": model.decoder cannot be built of its settings: too wide\n")


def test_a_bug_in_a_worker_of_the_loader_shows_its_traceback(data, tmp_path, monkeypatch):
    make = main.train.__globals__["build_data"]  # it makes a sample in this process: the bug comes afterwards

    def build_then_break(*arguments):
        source = make(*arguments)
        inject(monkeypatch, PLACES["transform"], ValueError("operands could not be broadcast together"))
        return source

    monkeypatch.setattr("engine.run.build_data", build_then_break)
    with pytest.raises(ValueError, match="operands could not be broadcast together"):
        train(data, tmp_path, **{"dataloader.train.num_workers": 1})
    text = (tmp_path / "log.txt").read_text()
    assert "in DataLoader worker process 0" in text and "in slip" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_bug_for_one_image_lets_predict_make_the_others(kind, data, tmp_path, monkeypatch, capsys):
    def matte(image, trimap):
        done.append(trimap)
        if len(done) == 1:
            raise kind("a slip of ours")
        return trimap

    done = []
    monkeypatch.setitem(steps.BASELINES, "ramp", matte)
    images, trimaps = str(data / "image"), str(data / "trimap")
    arguments = [images, "--trimap-dir", trimaps, "--baseline", "ramp", "--output", str(tmp_path)]
    assert predict.main(arguments) == 1
    message = capsys.readouterr().err
    assert "1 of 3 images failed" in message and message.count(TRACEBACK) == 1 and "in matte" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "2.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bug_in_make_trimap_shows_its_traceback(kind, data, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "tools.make_trimap.trimap_of_mask", kind("a slip of ours"))
    masks, output = str(data / "alpha"), str(tmp_path)
    assert make_trimap.main(["--mask", masks, "--width-px", "4", "--output", output]) == 1
    message = capsys.readouterr().err
    assert "3 of 3 images failed" in message and message.count(TRACEBACK) == 3 and "in slip" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_bug_in_evaluate_shows_its_traceback(kind, data, monkeypatch):
    inject(monkeypatch, "evaluation.folders.measure", kind("a slip of ours"))
    folders = ["--pred-dir", "alpha", "--label-dir", "alpha", "--trimap-dir", "trimap"]
    with pytest.raises(kind, match="a slip of ours"):  # for which Python ends with status 1
        evaluate.main([*(str(data / word) if word[0] != "-" else word for word in folders), "--workers", "1"])
