"""What every test shares: a CUDA check, the folders of real data, a folder without rights, hypothesis settings."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.utils.cpp_extension  # logs a line on stderr, once, that tests of messages need not know of

from engine.interrupts import SIGNALS, set_back

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
# As a terminal starts a program, whoever started the tests: nohup and background jobs have signals ignored.
HANDLERS = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}

# No deadline: the cores are shared with other workers. Derandomised: a red run is red again.
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repository")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command that a signal has ended ignores others from then on, and so would what a test starts.

    Before each test as well: fixtures of a module run such commands, too.
    """
    set_back(HANDLERS, is_ending=False)
    yield
    set_back(HANDLERS, is_ending=False)


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
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a picture that the process may neither list, read nor write."""
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
