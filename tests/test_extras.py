import sys

import pytest

from inference.extras import MissingExtraError, find_extra, import_extra


def test_an_installed_package_is_imported():
    assert import_extra("xml.dom", "a test") is sys.modules["xml.dom"]


def test_a_missing_package_is_named_with_the_way_to_get_it():
    with pytest.raises(MissingExtraError, match=r"^a test needs the optional package no_such_package: pip install -r "):
        import_extra("no_such_package.part", "a test")


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
