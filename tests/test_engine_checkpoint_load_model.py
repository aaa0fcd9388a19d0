"""engine.checkpoint.load_model: a network comes back with the weights of its file, on its device, ready to evaluate."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from engine.checkpoint.file import CheckpointError
from engine.checkpoint.load_model import load_model
from engine.config.config import apply_overrides, load_config
from runtime.errors import ConfigError
from tests.helpers.paths import DEMO
from tests.helpers.training import overrides


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """`config.yaml` of a tiny network for the CPU and random `weights.pth`, no tensor of which is fresh."""
    folder = tmp_path_factory.mktemp("network")
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(folder, folder, **{"train.device": "cpu"}))
    generator = torch.Generator().manual_seed(0)
    weights = instantiate(cfg.model).state_dict()
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1, generator=generator)
    torch.save({"model": weights}, folder / "weights.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    return folder


def test_every_tensor_is_that_of_the_file(network):
    model = load_model(network / "config.yaml", network / "weights.pth")
    expected = torch.load(network / "weights.pth", weights_only=True)["model"]
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(module.training for module in model.modules())


def test_what_does_not_fit_is_refused(network):
    with pytest.raises(FileNotFoundError, match="no checkpoint 'absent.pth'"):
        load_model(network / "config.yaml", "absent.pth")
    with pytest.raises(CheckpointError, match="weights.pth does not fit the model"):
        load_model(DEMO, network / "weights.pth")
    with pytest.raises(ConfigError, match="expected the sections model, got train"):
        load_model(DEMO.replace("demo.py", "common/train.py"), network / "weights.pth")
