"""Read author and licence of an image, as its package states them, and check that a set has free images alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from data.image_io.images import DataError
from tools.dataset.open_data.sources import Source, matches

NOT_STATED = "not stated"
MOST_AUTHORS = 5  # named in a manifest; `licences/` has the text that names all

FREE_LICENCES = (
    *("CC0", "CC0-1.0", "public domain", "public-domain"),
    *("MIT", "Expat", "BSD-[23]-[Cc]lause", "Apache-2.0"),
    *("CC[- ]BY[- ][1-4].[05]", "CC[- ]BY-SA[- ][1-4].[05]"),
    *("GPL-[23]", "GPL-[23]+", "LGPL-2.1", "LGPL-2.1+", "LGPL-3", "LGPL-3+"),
)
"""Patterns of `fnmatch` for the licences, as packages write them, that let anyone use and change an image."""

IMAGE_FOLDERS = ("train/rgba", "train/backgrounds", "test/rgba", "test/backgrounds")
"""Folders of a set whose images stand in its manifest; its composites are made of them."""


@dataclass(frozen=True)
class Terms:
    """Licence and author of an image, `NOT_STATED` if the package does not state them."""

    licence: str
    author: str

    def fault(self) -> str | None:
        """Tell why an image under these terms is not used; None if it is free."""
        if not matches(self.licence, FREE_LICENCES):
            return f"is under the licence {self.licence!r}, which is not among the free ones"
        return "has no author" if self.author in ("", NOT_STATED) else None


def terms_of(source: Source, name: str, texts: Mapping[str, str]) -> Terms:
    """Read the terms of one file.

    Args:
        source: the package.
        name: the file's name in it.
        texts: name -> content of the files in which the package states its terms.

    Raises:
        DataError: the package lacks what states its terms, or no licence covers the file.
    """
    if name in source.licences:
        licence, _, author = source.licences[name].partition(" by ")
        return Terms(licence, author or NOT_STATED)
    if not texts:
        raise DataError(f"{source.package} came without the file that states its terms: its images are not used")
    if source.client == "npm":
        record = json.loads(next(text for at, text in texts.items() if at.endswith("package.json")))
        author = record.get("author", NOT_STATED)
        return Terms(record.get("license", NOT_STATED), author.get("name", "") if isinstance(author, dict) else author)
    return debian_terms(name, next(iter(texts.values())))


def debian_terms(name: str, copyright_text: str) -> Terms:
    """Read a file's terms from a debian/copyright file: the last paragraph that names or else covers it.

    Its patterns are paths in the package's source. A pattern names a file if it is the end of its path. It covers a
    file if it matches the end of its path or ends with its name; `*` covers all.

    Raises:
        DataError: no paragraph covers the file.

    Source: Debian's machine-readable debian/copyright file, version 1.0.
    """
    found: dict[bool, Terms] = {}  # whether the paragraph names the file
    for paragraph in copyright_text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.splitlines():
            if line[:1] not in (" ", "\t", "#") and ":" in line:
                key, _, line = line.partition(":")
            fields.setdefault(key, []).append(line.strip())
        patterns = " ".join(fields.get("Files", [])).split()
        is_named = any(f"/{name}".endswith(f"/{pattern}") for pattern in patterns)
        if is_named or any(covers(pattern, name) for pattern in patterns):
            authors = [line for line in fields.get("Copyright", []) if line]
            if (rest := len(authors) - MOST_AUTHORS) > 0:
                authors[MOST_AUTHORS:] = [f"{rest} others"]
            found[is_named] = Terms(fields.get("License", [NOT_STATED])[0], "; ".join(authors) or NOT_STATED)
    if not found:
        raise DataError(f"no licence in the package's copyright file covers {name}: it is not used")
    return found.get(True) or found[False]


def covers(pattern: str, name: str) -> bool:
    """Tell whether a pattern of a copyright file covers a file of the package; see `debian_terms`."""
    same_name = pattern.rpartition("/")[2] == name.rpartition("/")[2]
    return pattern == "*" or fnmatchcase(name, f"*/{pattern}") or same_name


def find_faults(manifest: Mapping, folder: Path | None = None) -> list[str]:
    """Find images of a set that are not free, and mismatches between its manifest and its files.

    Args:
        manifest: of tools/make_open_dataset.py.
        folder: the set; None checks the manifest alone, for example that of a trained network.

    Returns: a line for each fault; empty if every image states origin, author and a free licence, or was drawn from
        nothing.
    """
    pictures: Mapping[str, Mapping] = manifest["pictures"]
    faults = []
    for name, entry in pictures.items():
        if entry.get("drawn") and "photograph" not in entry:
            continue
        if not (entry.get("package") and entry.get("file")):
            faults.append(f"{name} has no origin")
        if fault := Terms(entry.get("licence", NOT_STATED), entry.get("author", NOT_STATED)).fault():
            faults.append(f"{name} {fault}")
    if folder is not None:
        files = {path.relative_to(folder).as_posix() for part in IMAGE_FOLDERS for path in (folder / part).iterdir()}
        faults += [f"{name} has no entry in the manifest" for name in sorted(files - pictures.keys())]
        faults += [f"{name} is in the manifest, but not in the folder" for name in sorted(pictures.keys() - files)]
    return faults


def licence_page(manifest: Mapping) -> str:
    """Write LICENCES.md: a table of packages, then each image with its origin, licence and author."""
    lines = [
        "# Licences",
        "",
        "Images drawn by the procedural generator (`drawn_*`) have no author but the seed; they are free of rights,",
        "unless the table names a photograph that gave its colours. Those named `*_defocused` are blurred copies.",
        "All others come from packages, under the terms that these state. Their full texts are in `licences/`. Whoever",
        "passes images on, passes their terms on with them.",
        "",
        "| package | what was read | SHA-256 |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {entry['read']} | {entry['sha256']} |" for name, entry in manifest["packages"].items()]
    lines += ["", "| image | package | file | licence | author |", "|---|---|---|---|---|"]
    for image, entry in sorted(manifest["pictures"].items()):
        if "package" in entry:
            cells = (image, *(str(entry[key]).replace("|", "/") for key in ("package", "file", "licence", "author")))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
