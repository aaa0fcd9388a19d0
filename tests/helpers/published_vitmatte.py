"""Transformers' ViTMatte with random weights, and runs of tools/export.py."""

import numpy as np
import torch
from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

from inference.formats.model_folder import read_model_folder
from tests.helpers.networks import randomise_vitmatte
from tools import export

GLOBAL = [2, 5, 8, 11]

WINDOWED = [index for index in range(12) if index not in GLOBAL]


def transformers_vitmatte(embed_dim, num_heads, backbone=(), **decoder):
    """Transformers' network with the settings of the published hustvl/vitmatte-* folders, but for those given."""
    published = dict(
        hidden_size=embed_dim,
        num_attention_heads=num_heads,
        num_channels=4,
        image_size=512,
        window_size=14,
        window_block_indices=WINDOWED,
        residual_block_indices=GLOBAL,
        use_relative_position_embeddings=True,
        out_features=["stage12"],
    )
    backbone = VitDetConfig(**published | dict(backbone))
    chans = dict(convstream_hidden_sizes=[48, 96, 192], fusion_hidden_sizes=[256, 128, 64, 32]) | decoder
    return randomise_vitmatte(
        VitMatteForImageMatting(VitMatteConfig(backbone_config=backbone, hidden_size=embed_dim, **chans))
    )


def run_export(*arguments):
    return export.main([str(argument) for argument in arguments])


def exported(source, folder):
    """Make a model folder of published weights, and read its network."""
    assert run_export("--from-vitmatte", source, "--output", folder) == 0
    return read_model_folder(folder)


def network_input(height, width):
    """Normalised colours and a trimap of 0, 0.5, 1, sides being multiples of 32."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(1, 3, height, width, generator=generator)
    return torch.cat((colours, torch.randint(0, 3, (1, 1, height, width), generator=generator) / 2), dim=1)


def assert_same_alpha(theirs, ours, x):
    with torch.inference_mode():
        expected = theirs(x).alphas
        found = ours.decoder(ours.backbone(x), x)
    assert expected[x[:, 3:] == 0.5].std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def random_image_and_trimap(height=45, width=70):
    rng = np.random.default_rng(0)
    trimap = rng.choice(np.array([0, 128, 255], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3), np.uint8), trimap


def refused_export(capsys, tmp_path, *arguments):
    """Run, see status 1 and nothing written, and give the one line."""
    assert run_export(*arguments, "--output", tmp_path / "model") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("export.py: ")
    assert not (tmp_path / "model").exists()
    return lines[0]
