"""tools/export.py --push: a folder on a stand-in for the Hugging Face hub, and what stops an upload."""

import pytest
import yaml

from inference.formats.hub import HubError, push
from inference.formats.model_folder import write_model_folder
from runtime.errors import UserError
from tests.helpers.hub_client import run_cases
from tests.helpers.hub_server import READER, WRITER, HubServer
from tests.helpers.networks import network_description, random_network


def write_network(folder, kind):
    write_model_folder(folder, network_description(kind), random_network(kind).state_dict(), "a test", "No terms.\n")
    return folder


@pytest.mark.parametrize(
    ("is_offline", "message"),
    [(True, "me/net: nothing is uploaded while HF_HUB_OFFLINE is set"), (False, "me/net: an upload needs an account")],
)
def test_without_a_connection_or_an_account_nothing_is_sent(tmp_path, monkeypatch, model_folder, is_offline, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("it would be asked"))
    with pytest.raises(HubError, match=message):
        push(model_folder, "me/net")


def test_a_damaged_folder_is_not_uploaded(model_folder):
    (model_folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        push(model_folder, "me/net")


@pytest.mark.slow
def test_a_pushed_folder_is_loaded_by_its_id(tmp_path):
    net = write_network(tmp_path / "net", "ViT")
    (net / "notes.txt").write_text("private")
    published = write_network(tmp_path / "published", "ViTDet")
    broken = write_network(tmp_path / "broken", "ViT")
    (broken / "MODEL_CARD.md").write_text("---\nlicense: [\n---\n")

    def export(token, *arguments):
        return {"run": "export", "with": arguments, "token": token}

    to_transformers = ("--model", published, "--format", "transformers", "--output")
    cases = {
        "net": export(WRITER, "--model", net, "--push", "me/net"),
        "net again": export(WRITER, "--model", net, "--push", "me/net"),
        "transformers": export(WRITER, *to_transformers, tmp_path / "hf", "--push", "me/hf"),
        "reader": export(READER, *to_transformers, tmp_path / "late", "--push", "org/late"),
        "stranger": export("hf_other", "--model", net, "--push", "me/net"),
        "broken": export(WRITER, "--model", broken, "--push", "me/broken"),
        "cut": export(WRITER, "--model", net, "--push", "org/cut"),
    } | {name: {"load": name} for name in ("me/net", "me/hf", "./net", "hf")}
    with HubServer() as server:
        outcomes = dict(zip(cases, run_cases(list(cases.values()), tmp_path, server.address), strict=True))

    for name, folder in {"net": "net", "net again": "net", "transformers": "hf"}.items():
        assert outcomes[name]["status"] == 0, outcomes[name]
        assert f"uploaded {tmp_path / folder} to {server.address}/me/{folder}\n" in outcomes[name]["out"]
    assert outcomes["me/net"]["alpha"] == outcomes["./net"]["alpha"]
    assert outcomes["me/hf"]["alpha"] == outcomes["hf"]["alpha"] != outcomes["./net"]["alpha"]

    repository = server.repositories["me/net"]
    files = repository.commits[repository.names["main"]]
    assert set(files) == {"config.json", "model.safetensors", "LICENSE.txt", "README.md"}
    assert files["model.safetensors"].content == (net / "model.safetensors").read_bytes()
    assert yaml.safe_load(files["README.md"].content.split(b"---\n")[1])["license_link"] == "LICENSE.txt"
    assert not (net / "README.md").exists()
    repository = server.repositories["me/hf"]
    assert "preprocessor_config.json" in repository.commits[repository.names["main"]]

    login = "log in with `hf auth login`, or set HF_TOKEN"
    late = tmp_path / "late"
    complete = f". {late} is complete: --model {late} --push org/late uploads it\n"
    for name, words, end in (
        ("reader", "org/late: the upload failed: 403 Forbidden: You don't have the rights", login + complete),
        ("stranger", "me/net: the upload failed: Client error '401 Unauthorized'", f"may write to me, {login}\n"),
        ("broken", "me/broken: the upload failed: Invalid metadata in README.md. - bad YAML", "\n"),
        ("cut", "org/cut: the upload failed: Server disconnected", "response\n"),
    ):
        outcome = outcomes[name]
        assert outcome["status"] == 1 and outcome["err"].startswith(f"export.py: {words}"), outcome
        assert outcome["err"].endswith(end) and outcome["err"].count("\n") == 1, outcome
    assert outcomes["reader"]["out"].startswith(f"wrote {late}: ")
    assert set(server.repositories) == {"me/net", "me/hf", "me/broken"}
