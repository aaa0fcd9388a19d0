"""Download networks from the Hugging Face hub, and upload folders of networks to it.

huggingface_hub is imported inside the functions: a local path never needs it and never opens a connection.
"""

import hashlib
import logging
import re
from pathlib import Path

from inference.formats.model_card import CARD_FILE, model_card
from inference.formats.model_folder import LICENSE_FILE
from inference.formats.published_vitmatte import read_network
from inference.formats.transformers_settings import PREPROCESSOR_FILE
from runtime.errors import UserError, one_line
from runtime.network_files import CONFIG_FILE, WEIGHTS_FILE

logger = logging.getLogger(__name__)

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""OWNER/NAME, a repository on the hub."""

HUB_ID = re.compile(rf"{REPOSITORY.pattern}(@[\w./-]+)?", re.ASCII)
"""OWNER/NAME or OWNER/NAME@REVISION; the revision is a branch, tag or commit."""

FILE_SUFFIXES = (".onnx", ".pth", ".safetensors")
"""A name that ends like this is a path of a file, never an id."""

FILES = (CONFIG_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE, LICENSE_FILE)
"""All files of model folders and of ViTMatte's transformers folders. Nothing else is downloaded or uploaded."""

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(UserError):
    """A network that cannot be downloaded or uploaded; the message says what to do."""


def is_hub_id(source: Path) -> bool:
    """Tell whether a source is an id on the hub. A local path wins: one that exists, or whose first folder exists."""
    is_id = HUB_ID.fullmatch(source.as_posix()) is not None and source.suffix.lower() not in FILE_SUFFIXES
    return is_id and not Path(source.parts[0]).exists()


def find_source(source: Path) -> Path:
    """Return the local path of a network: of an id, the downloaded folder; otherwise the source itself.

    Raises:
        HubError: see `download`.
    """
    return download(source.as_posix()) if is_hub_id(source) else source


def download(name: str) -> Path:
    """Download a model folder, or a transformers folder of ViTMatte, into huggingface_hub's cache.

    Files in the cache are not downloaded again. Without a connection, the cache is used.

    Args:
        name: `HUB_ID`.

    Returns: the folder in the cache. Its content is checked by the readers of these folders.

    Raises:
        HubError: there is no such repository or revision, it has no safetensors, it cannot be reached and is not in the
            cache, or the weights are damaged.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # of the HTTP client that it uses

    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    # ValueError for a name that is refused, RuntimeError from the package that transfers files.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{name}: {_explain(error, repository, revision)}") from error
    logger.info("%s: commit %s", name, folder.name)
    if not (folder / WEIGHTS_FILE).is_file():
        raise HubError(
            f"{name}: {folder} has no {WEIGHTS_FILE}, and pickled weights are never downloaded. Convert them with "
            "tools/export.py --from-vitmatte, or ask the owner for safetensors"
        )
    check_weights(folder / WEIGHTS_FILE)
    return folder


def check_weights(path: Path) -> None:
    """Compare the SHA-256 of a file in huggingface_hub's cache with the hub's.

    In the cache, a file is a link to one that is named after its ETag. The ETag of a file in LFS is its SHA-256. Where
    the cache has no links (Windows) or the file is not in LFS, a warning is logged.

    Raises:
        HubError: they differ.
    """
    # Only one link is followed: the file behind it may be a link to a store that is shared, under another name.
    expected = path.readlink().name if path.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", expected):
        logger.warning("%s: the cache does not know its SHA-256, so the download is not compared with it", path)
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise HubError(
            f"{path.resolve()} is damaged: its SHA-256 is {found}, expected {expected}. Delete this file and load the "
            "network again"
        )


def push(folder: Path, repository: str) -> str:
    """Upload a model folder or a transformers folder of ViTMatte, with a model card, in one commit.

    The network is read first, so no damaged folder is uploaded. A missing repository is created, as a public one.

    Args:
        folder: its `FILES` are uploaded, nothing else of it; see `inference.formats.model_card.model_card` for the
            card.
        repository: OWNER/NAME.

    Returns: the address of the repository.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        UserError: the folder holds no network that can be read.
        HubError: it cannot be uploaded.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HTTPError

    model = read_network(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise HubError(f"{folder} has no {WEIGHTS_FILE}: make a folder with it by tools/export.py --from-vitmatte")
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repository}: nothing is uploaded while HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise HubError(f"{repository}: an upload needs an account on the hub: {LOGIN}")
    additions = [CommitOperationAdd(name, folder / name) for name in FILES if (folder / name).is_file()]
    additions.append(CommitOperationAdd(CARD_FILE, model_card(folder, repository, model).encode()))
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.create_commit(repository, additions, commit_message="Upload a matting network")
    # huggingface_hub raises ValueError for a name or card that is refused, RuntimeError around the error of a transfer.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        owner = repository.partition("/")[0]
        advice = f". For a token that may write to {owner}, {LOGIN}" if status in (401, 403) else ""
        reason = one_line(error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error)
        raise HubError(f"{repository}: the upload failed: {reason.rstrip('.')}{advice}") from error
    return f"{api.endpoint}/{repository}"


def _explain(error: Exception, repository: str, revision: str) -> str:
    """Return why a download failed, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    here = "there is no such folder here, and"
    if isinstance(error, GatedRepoError):  # which is a RepositoryNotFoundError, too
        return f"its owner grants access on request: ask at {constants.ENDPOINT}/{repository}, then {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{here} {constants.ENDPOINT} has no such repository, or it is private. Correct the name. For a private "
            f"one, {LOGIN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision}: name one of its branches, tags or commits"
    if isinstance(error, HFValidationError):
        return f"{here} it is no valid name on the hub: {one_line(error)}"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"{here} the cache has no complete copy while HF_HUB_OFFLINE is set. Load it once without this variable, "
            "for example with tools/predict.py"
        )
    reason = one_line(error.__cause__ or error).rstrip(".")
    return f"{here} it cannot be downloaded from {constants.ENDPOINT}: {reason}. Check the connection and the disk"
