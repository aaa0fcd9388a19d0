"""The model card of a folder: its YAML head, what it says of the network, and a card of the user's own."""

import pytest
import yaml

from inference.formats.model_card import model_card
from inference.formats.model_folder import read_model_folder
from inference.formats.published_vitmatte import read_network
from inference.formats.transformers_folder import write_transformers_folder
from tests.helpers.networks import network_description, random_network


def parts(card):
    """YAML head and body of a card."""
    start, head, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head), body


def test_the_card_describes_the_network_and_how_to_use_it(model_folder):
    (model_folder / "LICENSE.txt").write_text("Built with {DINOv3}.\n\nTerms.\n")
    model = read_model_folder(model_folder)
    head, body = parts(model_card(model_folder, "me/net", model))
    assert (head["license"], head["license_link"]) == ("other", "LICENSE.txt")
    assert head["pipeline_tag"] == "image-segmentation" and "image-matting" in head["tags"]
    assert "library_name" not in head
    assert body.startswith("\n# net\n") and body.endswith("\n## Licence\n\nBuilt with {DINOv3}.\n\nTerms.\n")
    millions = sum(tensor.numel() for tensor in model.parameters()) / 1e6
    assert "- Source: a test\n- Backbone: ViT, 2 blocks, 32 wide, patches of 16 px\n" in body
    assert f"- Parameters: {millions:.1f} million\n" in body
    assert "--model me/net" in body and 'Predictor.load("me/net")' in body and "from_pretrained" not in body


def test_the_card_of_a_transformers_folder_names_its_library(tmp_path):
    tensors = random_network("ViTDet").state_dict()
    write_transformers_folder(tmp_path / "hf", network_description("ViTDet"), tensors, "Terms.\n")
    head, body = parts(model_card(tmp_path / "hf", "me/net", read_network(tmp_path / "hf")))
    assert head["library_name"] == "transformers"
    assert 'VitMatteForImageMatting.from_pretrained("me/net")' in body and "- Source: not stated\n" in body


def test_without_a_licence_note_the_licence_is_unknown(model_folder):
    (model_folder / "LICENSE.txt").unlink()
    head, body = parts(model_card(model_folder, "me/net", read_model_folder(model_folder)))
    assert head["license"] == "unknown" and "license_link" not in head
    assert body.endswith("The folder states no terms.\n")


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "README.md"])
def test_a_card_in_the_folder_is_used_with_a_head(model_folder, name):
    model = read_model_folder(model_folder)
    (model_folder / "README.md").write_text("# Another\n")
    (model_folder / name).write_text("# Mine\n\nWords.\n")
    head, body = parts(model_card(model_folder, "me/net", model))
    assert body == "\n# Mine\n\nWords.\n" and head["license"] == "other"
    own = "---\nlicense: mit\n---\n# Mine\n"
    (model_folder / name).write_text(own)
    assert model_card(model_folder, "me/net", model) == own
