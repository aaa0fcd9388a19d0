"""The table of faults: for each a stable code, its severity, its meaning and what to do."""

from pathlib import Path
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]
"""An error must be fixed before training: the run would stop, or learn or measure something wrong."""


class Fault(NamedTuple):
    """A kind of fault; `meaning` and `advice` are a line each."""

    severity: Severity
    meaning: str
    advice: str


class Finding(NamedTuple):
    """A fault of one file; `detail` describes what was found."""

    code: str
    path: Path
    detail: str


FAULTS = {
    # of names
    "missing-partner": Fault("error", "no file of its name where its partner belongs", "add the partner or remove it"),
    "same-name": Fault("error", "two files of one name without suffix", "keep one of them"),
    "name-case": Fault("error", "a name that differs from its partner's in case alone", "rename one of the two"),
    "taken-twice": Fault("warning", "an image that two places of one data set have", "name it once, if not on purpose"),
    # of one file
    "no-permission": Fault("error", "a file that this user may not read", "give the right to read it"),
    "zero-bytes": Fault("error", "a file without content", "copy it again from where it is complete"),
    "truncated": Fault("error", "an image whose end is missing", "copy it again from where it is complete"),
    "unreadable": Fault("error", "not an image that can be used", "replace, convert or remove it"),
    "wrong-extension": Fault("warning", "another format than the suffix says, read all the same", "rename it"),
    "ignored-picture": Fault("warning", "an image whose suffix is not read", "rename or convert it, or take it away"),
    # of an image and its partner
    "size-mismatch": Fault("error", "another size than its partner", "find the right partner; do not just resize"),
    "exif-rotation": Fault(
        "error", "turned by its EXIF orientation, but its partner is not", "save both upright, without the tag"
    ),
    "mixed-depth": Fault(
        "warning", "8 bit beside colours of 16, or the reverse", "see that neither was cut or stretched on the way"
    ),
    # of alphas
    "not-grey": Fault("error", "an alpha or trimap with colours or transparency of its own", "save one grey channel"),
    "no-transparency": Fault(
        "error", "a cut-out that is opaque everywhere", "add its alpha, or name a folder of alphas"
    ),
    "empty-alpha": Fault("error", "an alpha without foreground", "export it again, or remove the pair"),
    "full-alpha": Fault("error", "an alpha without background", "export it again, or remove the pair"),
    "hard-mask": Fault(
        "warning", "a mask: almost no pixel between 0 and 1 along its outline", "replace it by a soft alpha"
    ),
    "premultiplied": Fault(
        "error", "colours already multiplied by alpha, or cut out of black", "divide the colours by alpha"
    ),
    # of trimaps
    "trimap-values": Fault("error", "values beside 0, 128 and 255", "set what is unknown to 128"),
    "trimap-no-unknown": Fault("error", "a trimap without an unknown pixel", "make it again from the alpha"),
    "trimap-contradiction": Fault(
        "error", "a trimap that calls known what its alpha says otherwise", "find the right one, or make it again"
    ),
    # of training and test
    "duplicate": Fault("error", "the pixels of a test image in training", "remove it from one of the two"),
    "near-duplicate": Fault(
        "warning", "a resized or recompressed test image in training", "look at both, remove one if they are one"
    ),
}
