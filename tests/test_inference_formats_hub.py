"""Networks of the Hugging Face hub, from a stand-in on this machine: ids, revisions, cache, checksums, errors."""

import hashlib
import re
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from inference.formats.hub import FILES, HubError, check_weights, find_source, is_hub_id
from inference.formats.model_folder import build, write_model_folder
from inference.formats.transformers_folder import write_transformers_folder
from inference.predictor import Predictor
from tests.helpers.hub_client import run_cases
from tests.helpers.hub_server import HubServer, Repository, stored
from tests.helpers.networks import network_description, randomise_vitmatte


@pytest.mark.parametrize(
    ("source", "is_id"),
    [
        ("org/net", True),
        ("org/net-1.5@v2", True),
        ("org/net@refs/pr/1", True),
        ("net", False),
        ("org/net/part", False),
        ("/org/net", False),
        ("~/net", False),
        ("../net", False),
        ("org/net@", False),
        ("org/net.onnx", False),
        ("org/net.pth", False),
        ("örg/net", False),
        ("folder/net", False),
        ("folder/net@v2", False),
    ],
)
def test_only_owner_and_name_without_a_local_folder_are_an_id(tmp_path, monkeypatch, source, is_id):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert is_hub_id(Path(source)) == is_id
    if not is_id:
        assert find_source(Path(source)) == Path(source)


def cached_weights(folder, content, etag):
    """A file as in huggingface_hub's cache: a link to one that is named after its ETag."""
    for name in ("blobs", "snapshots/commit"):
        (folder / name).mkdir(parents=True)
    (folder / "blobs" / etag).write_bytes(content)
    (folder / "snapshots/commit/model.safetensors").symlink_to(f"../../blobs/{etag}")
    return folder / "snapshots/commit/model.safetensors"


def test_a_flipped_bit_in_the_cache_is_an_error_that_names_the_file_to_delete(tmp_path):
    content = bytes(range(100))
    digest = hashlib.sha256(content).hexdigest()
    check_weights(cached_weights(tmp_path / "good", content, digest))
    path = cached_weights(tmp_path / "bad", bytes([content[0] ^ 1]) + content[1:], digest)
    with pytest.raises(HubError, match=f"{tmp_path}/bad/blobs/{digest} is damaged.*expected {digest}.*Delete"):
        check_weights(path)
    # A cache may share files between repositories, under a hash of another kind.
    other = path.resolve().rename(tmp_path / ("f" * 64))
    other.write_bytes(content)
    (tmp_path / "bad/blobs" / digest).symlink_to(other)
    check_weights(path)


@pytest.mark.parametrize("error", [RuntimeError("a broken\ntransfer"), OSError(28, "No space left on device")])
def test_an_error_of_the_transfer_is_one_line(tmp_path, monkeypatch, error):
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=error))
    monkeypatch.chdir(tmp_path)
    reason = " ".join(str(error).split())
    with pytest.raises(HubError, match=f"^org/net: .*cannot be downloaded from .*{re.escape(reason)}. Check") as raised:
        Predictor.load("org/net")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("etag", ["a" * 40, "copy"])
def test_weights_without_a_known_checksum_are_used_with_a_warning(tmp_path, caplog, etag):
    path = cached_weights(tmp_path, b"weights", etag)
    if etag == "copy":
        path.unlink()
        path.write_bytes(b"weights")
    check_weights(path)
    assert "does not know its SHA-256" in caplog.text


def write_network(folder, kind="ViT", scale=1.0, is_transformers=False):
    """A folder of a tiny network; `scale` makes another one of it."""
    description = network_description(kind)
    tensors = randomise_vitmatte(build("model", description)).state_dict()
    tensors["decoder.matting_head.matting_convs.3.bias"] += scale
    if is_transformers:
        write_transformers_folder(folder, description, tensors, "No terms.\n")
    else:
        write_model_folder(folder, description, tensors, "a test", "No terms.\n")
    return folder


def files_of(folder):
    return {path.name: stored(path.name, path.read_bytes()) for path in folder.iterdir()}


class Hub:
    """What a process got with a hub, with HF_HUB_OFFLINE after the hub had gone, and without a connection."""

    def __init__(self, folder):
        self.folder = folder
        self.first = write_network(folder / "first", scale=0.5)
        self.second = write_network(folder / "second", scale=0.0)
        self.transformers = write_network(folder / "transformers", "ViTDet", is_transformers=True)
        write_network(folder / "local/net", scale=0.25)
        image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
        trimap = np.full((45, 70), 128, np.uint8)
        for name, pixels in {"image": image, "alpha": trimap, "trimap": trimap}.items():
            (folder / "set" / name).mkdir(parents=True)
            cv2.imwrite(str(folder / "set" / name / "a.png"), pixels)

        with HubServer() as server:
            net = Repository(files_of(self.first))
            net.names["v1"] = self.commit = net.names["main"]
            net.commit(files_of(self.second))
            second = files_of(self.second)
            weights = second["model.safetensors"]
            flipped = weights._replace(content=weights.content[:-1] + bytes([weights.content[-1] ^ 1]))
            server.repositories = {
                "org/net": net,
                "local/net": net,
                "org/transformers": Repository(files_of(self.transformers)),
                "org/damaged": Repository(second | {"model.safetensors": flipped}),
                "org/pickled": Repository(
                    {"config.json": second["config.json"], "pytorch_model.bin": stored("pytorch_model.bin", b"pickle")}
                ),
                "org/gated": Repository(second, is_gated=True),
            }
            pair = [folder / "set/image/a.png", "--trimap", folder / "set/trimap/a.png"]
            data = ["--dataset", folder / "set", "--workers", 1]
            self.online = self.run(
                server.address,
                # Local paths first: later on, a connection may be used again without being opened.
                *("first", "second", "transformers", "local/net", str(folder / "local/net"), "first/absent"),
                *("org/net", "org/net@v1", f"org/net@{self.commit}", "org/transformers", "org/absent"),
                *("org/net@absent", "org/gated", "org/damaged", "org/pickled", "org/cut", "org/a--b"),
                by_id=("predict", *pair, "--model", "org/net", "--output", folder / "id.png"),
                by_path=("predict", *pair, "--model", "second", "--output", folder / "path.png"),
                evaluated=("evaluate", *data, "--model", "org/net@v1", "--pred-dir", folder / "pred"),
                exported=("export", "--model", "org/net", "--format", "transformers", "--output", folder / "out"),
            )
            self.requests = server.requests
        self.offline = self.run(
            server.address, "org/net", "org/net@v1", "org/damaged", "org/other", "org/net@other", HF_HUB_OFFLINE="1"
        )
        self.unreachable = self.run(server.address, "org/net", "org/other")

    def run(self, endpoint, *sources, HF_HUB_OFFLINE="0", **commands):  # noqa: N803
        cases = {source: {"load": source} for source in sources}
        cases |= {name: {"run": tool, "with": rest} for name, (tool, *rest) in commands.items()}
        outcomes = run_cases(list(cases.values()), self.folder, endpoint, HF_HUB_OFFLINE=HF_HUB_OFFLINE)
        return dict(zip(cases, outcomes, strict=True))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return Hub(tmp_path_factory.mktemp("hub"))


@pytest.mark.slow
def test_an_id_gives_the_alpha_of_the_same_folder_here(hub):
    online = hub.online
    assert len({online[name]["alpha"] for name in ("first", "second", "transformers")}) == 3
    assert min(online[name]["std"] for name in ("first", "second", "transformers")) > 0.02
    assert online["org/net"]["alpha"] == online["second"]["alpha"]
    assert online["org/net@v1"]["alpha"] == online[f"org/net@{hub.commit}"]["alpha"] == online["first"]["alpha"]
    assert online["org/transformers"]["alpha"] == online["transformers"]["alpha"]


@pytest.mark.slow
def test_commands_take_an_id_as_their_model(hub):
    assert [hub.online[name]["status"] for name in ("by_id", "by_path", "evaluated")] == [0, 0, 0]
    assert (hub.folder / "id.png").read_bytes() == (hub.folder / "path.png").read_bytes()
    assert (hub.folder / "pred/a.png").is_file()
    assert "the backbone is ViT, and transformers has" in hub.online["exported"]["err"], "it was read"


@pytest.mark.slow
def test_a_local_path_wins_and_opens_no_connection(hub):
    assert hub.online["local/net"]["alpha"] == hub.online[str(hub.folder / "local/net")]["alpha"]
    assert "first/absent: no such model folder" in hub.online["first/absent"]["error"]
    assert not any("local/net" in request or "first" in request for request in hub.requests)
    for name in ("local/net", "first/absent", "first"):
        assert not hub.online[name]["connections"], name
    assert hub.online["org/net"]["connections"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/absent", "there is no such folder here, and {} has no such repository, or it is private"),
        ("org/net@absent", "the repository has no revision absent: name one"),
        ("org/gated", "its owner grants access on request: ask at {}/org/gated, then log in"),
        ("org/damaged", "is damaged: its SHA-256 is "),
        ("org/pickled", "has no model.safetensors, and pickled weights are never downloaded"),
        ("org/cut", "there is no such folder here, and it cannot be downloaded from {}: "),
        ("org/a--b", "there is no such folder here, and it is no valid name on the hub: "),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(hub, name, words):
    outcome = hub.online[name]
    address = hub.unreachable["org/other"]["error"].split(" from ")[1].split(": ")[0]
    assert words.format(address) in outcome["error"] and len(outcome["error"].splitlines()) == 1
    assert outcome["kind"] == "HubError"


@pytest.mark.slow
def test_only_the_files_of_networks_are_downloaded(hub):
    files = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert {"config.json", "model.safetensors"} < files <= set(FILES)


@pytest.mark.slow
def test_the_cache_serves_without_a_hub(hub):
    for outcomes in (hub.offline, hub.unreachable):
        assert outcomes["org/net"]["alpha"] == hub.online["second"]["alpha"]
    assert hub.offline["org/net@v1"]["alpha"] == hub.online["first"]["alpha"]
    assert "is damaged: its SHA-256" in hub.offline["org/damaged"]["error"]
    for name in ("org/other", "org/net@other"):
        assert "the cache has no complete copy while HF_HUB_OFFLINE is set" in hub.offline[name]["error"]
    assert not any(outcome["connections"] for outcome in hub.offline.values())
    assert "Connection refused" in hub.unreachable["org/other"]["error"]
