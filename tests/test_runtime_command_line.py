"""runtime/command_line.py and the tools that use it: what is there already is named, and replaced when asked alone."""

import json

import pytest

from runtime.command_line import refuse_existing
from runtime.errors import UserError
from tests.helpers.paths import DEMO
from tools.dataset import make_demo_data, visualize_data
from tools.runs import gather_checkpoint, plot_metrics


def test_existing_outputs_are_named_with_what_to_do(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(9)]
    refuse_existing(paths)
    for path in paths[2:8]:
        path.touch()
    with pytest.raises(
        UserError, match=r"2\.png, .*3\.png, .*4\.png and 3 more are there already: --overwrite"
    ) as error:
        refuse_existing(iter(paths), can_resume=True)
    assert "--resume makes only what is missing" in str(error.value)
    with pytest.raises(UserError, match=r"2\.png is there already: --overwrite replaces it$"):
        refuse_existing(paths[:3])


@pytest.mark.parametrize(
    ("main", "name", "arguments"),
    [
        (visualize_data.main, "sheet.png", ["--config-file", DEMO, "--output", "{}/sheet.png"]),
        (gather_checkpoint.main, "model.pth", ["--folder", "{}/absent", "--output", "{}/model.pth"]),
        (make_demo_data.main, "manifest.json", ["--output", "{}"]),
        (plot_metrics.main, "curves.png", ["{}/metrics.json", "--output", "{}/curves.png"]),
        (plot_metrics.main, "table.csv", ["{}/metrics.json", "--table", "--csv", "{}/table.csv"]),
    ],
)
def test_a_tool_refuses_before_it_works(tmp_path, capsys, main, name, arguments):
    (tmp_path / name).write_text("of the user")
    assert main([str(argument).format(tmp_path) for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == "" and f"{tmp_path / name} is there already: --overwrite replaces it" in output.err
    assert (tmp_path / name).read_text() == "of the user"


def test_overwriting_draws_the_curves_anew(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 9, "total_loss": 1}) + "\n")
    (tmp_path / "curves.png").write_text("of an earlier run")
    command = [str(tmp_path / "metrics.json"), "--output", str(tmp_path / "curves.png"), "--overwrite"]
    assert plot_metrics.main(command) == 0
    assert f"to {tmp_path / 'curves.png'}" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
