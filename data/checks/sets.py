"""List the folders of a data set, as a config names them, and group the files that belong together."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.checks.faults import Finding
from data.image_io.images import DataError
from data.sources.discovery import check_no_pack, find_both, find_folders, find_named
from data.sources.layouts import check_no_files
from data.sources.packs.reader import PackedForeground, find_packed, is_pack

Part = Literal["training", "test"]
Role = Literal["foreground", "image", "trimap", "alpha", "background"]

TRAINING_KINDS: dict[str, Role] = {"foregrounds": "foreground", "images": "image", "backgrounds": "background"}


class FolderSet(NamedTuple):
    """Folders, or patterns of `data.sources.discovery.find_named`, whose files belong together by name.

    `number` identifies the data set in its config. A file in two places of one data set is used twice.
    """

    part: Part
    places: dict[Role, Path]
    number: int = 0


class Group(NamedTuple):
    """The existing files of one name, or a packed foreground, whose name stands for its file.

    A cut-out is a foreground that needs no alpha file.
    """

    part: Part
    files: tuple[tuple[Role, Path], ...]
    is_cutout: bool = False
    packed: PackedForeground | None = None


def read_config_sets(dataloader: Mapping[str, Any]) -> list[FolderSet]:
    """List the folders that a config's `dataloader` uses for training and testing, including mixtures.

    Args:
        dataloader: resolved, plain dicts and lists.

    Raises:
        DataError: it names no folder, or a file or pack where none may be; otherwise as
            `data.sources.discovery.find_real_images`.
    """
    training = [
        found._replace(number=number)
        for number, node in enumerate(find_nodes(dataloader.get("train")))
        for found in find_training_sets(node)
    ]
    test = [found for node in find_nodes(dataloader.get("test")) for found in find_test_sets(node)]
    if not training and not test:
        raise DataError("no folder to check: expected foreground_dirs, image_dirs, background_dirs or image_dir in it")
    return [*training, *test]


def find_nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every dict at and below a node of a config."""
    if isinstance(node, Mapping):
        yield node
    if isinstance(node, Mapping | list | tuple):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from find_nodes(child)


def find_training_sets(node: Mapping[str, Any]) -> Iterator[FolderSet]:
    """List the training folders of one data set.

    Args:
        node: its arguments, of which `foreground_dirs`, `image_dirs`, `background_dirs` and `alpha_dirs` count.

    Raises: as `data.sources.discovery.find_real_images`.
    """
    for kind, role in TRAINING_KINDS.items():
        places = node.get(f"{role}_dirs")
        if places:
            alphas = None if role == "background" else node.get("alpha_dirs")
            for images, alpha in find_folders(kind, places, alphas):  # type: ignore[arg-type]  # keys are its kinds
                if role == "image" and alpha is None:
                    raise DataError(f"no alphas are named for the images of {images}: name a folder of alphas")
                yield FolderSet("training", {role: images, **({"alpha": alpha} if alpha else {})})


def find_test_sets(node: Mapping[str, Any]) -> Iterator[FolderSet]:
    """List the folders of one test set; of its arguments `image_dir`, `trimap_dir` and `alpha_dir` count.

    Raises:
        DataError: one is a file or a pack.
    """
    roles: Sequence[Role] = ("image", "trimap", "alpha")
    places = {role: Path(node[f"{role}_dir"]) for role in roles if node.get(f"{role}_dir")}
    check_no_files(places.values())
    for place in places.values():
        check_no_pack(place)
    if places:
        yield FolderSet("test", places)


def find_groups(folders: FolderSet) -> tuple[list[Group], list[Finding]]:
    """Group the files of a set by name, and report those without a partner.

    If no exact partner exists, names that differ only in case or in the encoding of accents match.

    Raises:
        DataError: a pack that is unfinished or damaged.
        FileNotFoundError: a folder is missing or holds no image.
        OSError: a folder may not be listed.
    """
    part, places, _ = folders
    if tuple(places) == ("foreground",) and is_pack(places["foreground"]):
        packed = find_packed(places["foreground"])
        return [Group(part, (("foreground", Path(one.name)),), packed=one) for one in packed], []
    if len(places) == 2:
        tables = dict(zip(places, find_both(*places.values()), strict=True))
    else:
        tables = {role: find_named(place) for role, place in places.items()}
    is_cutout = tuple(places) == ("foreground",)
    if len(tables) == 1:
        ((role, table),) = tables.items()
        return [Group(part, ((role, path),), is_cutout) for paths in table.values() for path in paths], []
    groups, findings = [], []
    for names in alike_names(tables):
        files = {role: tables[role][name][0] for role, name in names.items()}
        groups.append(Group(part, tuple(files.items())))
        first = next(iter(names.values()))
        lacking = [role for role in places if role not in names]
        if lacking:
            where = " and ".join(f"{role} in {places[role]}" for role in lacking)
            findings.append(Finding("missing-partner", next(iter(files.values())), f"no {where}"))
        findings += [
            Finding("name-case", files[role], f"its partner is {next(iter(files.values()))}")
            for role, name in names.items()
            if name != first
        ]
        for role, name in names.items():
            for path in tables[role][name][1:]:
                groups.append(Group(part, ((role, path),)))
                findings.append(Finding("same-name", path, f"{files[role].name} has its name too"))
    return groups, findings


def alike_names(tables: Mapping[Role, Mapping[str, Sequence[Path]]]) -> Iterator[dict[Role, str]]:
    """Yield names that belong together: role -> name, for the roles that have one."""
    by_fold: dict[str, dict[Role, list[str]]] = defaultdict(lambda: defaultdict(list))
    for role, table in tables.items():
        for name in table:
            by_fold[name.casefold()][role].append(name)
    for _, names_by_role in sorted(by_fold.items()):
        if all(len(names) == 1 for names in names_by_role.values()):
            yield {role: names[0] for role, names in names_by_role.items()}
            continue
        for name in sorted({name for names in names_by_role.values() for name in names}):
            yield {role: name for role, names in names_by_role.items() if name in names}
