"""Set-up: the requirement files, the detectron2 installer, the import path of tools, the gate's counting."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from tools.runs import install_detectron2

# The spawned worker must find `_root` by itself, so `tools`, which would help it, is imported after.
PROBE = """
import _root

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import probed_room


def path_of_root() -> str:
    return _root.__file__


if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(path_of_root).result())
    print(probed_room.__file__)
    import tools
    print(tools.__file__)
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Make a repository with the tool `probe` twice, once in a subfolder, beside a foreign package `tools`.

    The package `probed_room` of the root has a namesake beside each tool, which must not hide it.
    """
    root = tmp_path / "house"
    shutil.copytree(REPOSITORY / "runtime", root / "runtime")  # which `_root` imports
    for folder in ("tools", "tools/runs"):
        (root / folder).mkdir(parents=True)
        for name in ("__init__.py", "_root.py"):
            shutil.copy(REPOSITORY / folder / name, root / folder / name)
        (root / folder / "probe.py").write_text(PROBE)
        (root / folder / "probed_room.py").touch()
    (root / "probed_room.py").touch()
    (tmp_path / "foreign" / "tools").mkdir(parents=True)
    (tmp_path / "foreign" / "tools" / "__init__.py").touch()
    return root


@pytest.mark.parametrize("way", ["tools/probe.py", "tools/runs/probe.py", "-m tools.probe", "-m tools.runs.probe"])
def test_a_tool_imports_from_the_repository_both_ways(house, way):
    environment = {**os.environ, "PYTHONPATH": str(house.parent / "foreign")}
    done = subprocess.run([sys.executable, *way.split()], cwd=house, env=environment, capture_output=True, text=True)
    expected = [house / "tools" / "_root.py", house / "probed_room.py", house / "tools" / "__init__.py"]
    assert (done.stdout.split(), done.stderr) == ([str(path) for path in expected], "")


@pytest.mark.parametrize("script", ["tools/probe.py", "tools/runs/probe.py"])
def test_a_tool_runs_from_another_folder(house, tmp_path, script):
    command = [sys.executable, house / script]
    done = subprocess.run(command, cwd=tmp_path / "foreign", capture_output=True, text=True)
    assert done.stdout.split()[1:] == [str(house / "probed_room.py"), str(house / "tools" / "__init__.py")]


def test_import_tools_is_ours():
    code = "import tools; print(tools.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == REPOSITORY / "tools" / "__init__.py"


def test_every_requirement_has_bounds_and_a_reason():
    files = sorted(path.name for path in REPOSITORY.glob("requirements*.txt"))
    assert len(files) == 5
    for name in files:
        is_explained = False
        for line in (REPOSITORY / name).read_text().splitlines():
            is_requirement = bool(line) and not line.startswith(("#", "-r requirements-"))
            if is_requirement:
                bounds = re.fullmatch(r"[a-z0-9-]+(>=[\w.]+,<[\w.]+|==[\w.]+)", line)
                assert bounds, f"{name}: {line}: expected name>=low,<high, or name==tried"
                assert is_explained, f"{name}: {line} has no comment above it"
            is_explained = line.startswith("#") or (is_requirement and is_explained)


def test_git_ignores_what_users_bring_and_keeps_the_shipped_network(tmp_path):
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    ignored = ["models/mine/config.json", "datasets/mine/a.png", "output/log.txt", "dinov3.pth", "w/model.safetensors"]
    kept = [
        "models/open/config.json",
        "models/open/model.safetensors",
        "data/datasets/new.py",
        "evaluation/output/new.py",
    ]
    done = subprocess.run(
        ["git", "check-ignore", *ignored, *kept], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ignored


def test_commands_in_the_docs_quote_brackets_and_keep_data_out_of_the_package():
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
        for line in page.read_text().splitlines():
            bare = re.search(r"(?<!['\"\w.])[\w.]+\.\w+=\[", line)
            assert not bare or '=["' in line, f"{page.name}: zsh takes brackets for a pattern: {line}"
            is_user_data = re.search(r"(?:=\[?|,|--[\w-]+ )data/", line)
            assert not is_user_data, f"{page.name}: data/ is a package of this project, name datasets/: {line}"


def fake_pip(command: list[str], check: bool) -> None:
    """Do what pip does for the pinned wheel: unpack it into the folder after --target."""
    assert check
    pinned = Path(command[command.index("-r") + 1]).read_text()
    assert re.search(r"==\S+ --hash=sha256:[0-9a-f]{64}", pinned)
    target = Path(command[command.index("--target") + 1])
    for name in ("detectron2", "tools", "sal_detectron2-0.7.2.dist-info"):
        (target / name).mkdir(parents=True)
        (target / name / "__init__.py").write_text(name)


def test_install_moves_in_detectron2_alone(monkeypatch, tmp_path):
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    monkeypatch.setattr(install_detectron2.subprocess, "run", fake_pip)
    install_detectron2.install(site_packages)
    assert sorted(path.name for path in site_packages.iterdir()) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert (site_packages / "detectron2" / "__init__.py").read_text() == "detectron2"
    assert list(tmp_path.iterdir()) == [site_packages]


def test_install_does_nothing_where_detectron2_imports(monkeypatch, capsys):
    monkeypatch.setattr(install_detectron2, "is_importable", lambda: True)
    monkeypatch.setattr(install_detectron2, "install", lambda site_packages: pytest.fail("installed again"))
    assert install_detectron2.main([]) == 0
    assert "already" in capsys.readouterr().out


def test_a_failing_pip_is_reported_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    def failing_pip(command: list[str], check: bool) -> None:
        raise subprocess.CalledProcessError(3, command)

    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    monkeypatch.setattr(install_detectron2, "is_importable", lambda: False)
    monkeypatch.setattr(install_detectron2.sysconfig, "get_paths", lambda: {"purelib": str(site_packages)})
    monkeypatch.setattr(install_detectron2.subprocess, "run", failing_pip)
    assert install_detectron2.main([]) == 1
    assert "exit status 3" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [site_packages]


@pytest.mark.parametrize(("lint_status", "failures"), [(0, 0), (1, 0), (0, 1)])
def test_ci_sums_the_counts_and_fails_if_any_part_failed(tmp_path, lint_status, failures):
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    suite = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'
    fast, slow = suite.format(10, failures, failures, 2), suite.format(3, 0, 0, 1)
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(
        f"#!/bin/sh\ncase $1 in\nlint) exit {lint_status};;\ntest) text='{fast}'; status={failures};;\n"
        f"test-slow) text='{slow}'; status=0;;\nesac\n"
        'echo "$text" > "${PYTEST_ADDOPTS#--junitxml=}"\nexit $status\n'
    )
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{10 - 2 * failures} passed, {2 * failures} failed, 3 skipped"
    assert done.returncode == (1 if lint_status or failures else 0)


def test_the_installer_shows_its_help(capsys):
    with pytest.raises(SystemExit) as stop:
        install_detectron2.main(["--help"])
    assert stop.value.code == 0 and "detectron2" in capsys.readouterr().out


@pytest.mark.slow
def test_no_warning_of_a_library_greets_who_trains():
    command = [sys.executable, "-c", "import main"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "FutureWarning" not in done.stderr
