"""Find the network in the checkpoint of a training run: nested dicts, prefixes, wrappers, teacher and EMA copies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from modeling.conversion.errors import ConversionError

WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"}
"""Parts of names that parallel, compiled and activation checkpointed modules add anywhere."""

COPIES = {
    "gram teacher": re.compile("gram_teacher"),
    "teacher": re.compile("teacher(_.*)?|.*_teacher"),
    "EMA": re.compile("(.*_)?ema(_.*)?|momentum_encoder|target_encoder|encoder_k|averaged_model|swa_model"),
    "student": re.compile("student(_.*)?|.*_student"),
}
"""Name of a copy of the network -> the part of a tensor's name that marks it, first match; "" has none."""

PRETRAINING_HEADS = re.compile(r"(.*\.)?((dino|ibot)_head|dino_loss|ibot_patch_loss|koleo_loss|gram_loss)\..*")


class Copy(NamedTuple):
    """One copy of a network.

    Attributes:
        kind: key of `COPIES`, or "".
        prefix: of its names in the input, with "." at its end, or "".
        tensors: name without prefix and wrappers -> tensor.
    """

    kind: str
    prefix: str
    tensors: dict[str, Tensor]


def take_copy(
    state: Mapping[str, Any], anchors: Sequence[str], preference: Sequence[str], account: dict[str, str]
) -> Copy | None:
    """Take one copy of a network out of a checkpoint.

    Args:
        state: tensors by name, in nested mappings or not; anything may lie beside them.
        anchors: each network has one of these names; the text before it is the prefix of a copy.
        preference: keys of `COPIES` and "", the preferred copy first.
        account: gets every key that is not taken, nested ones joined by ".", with its reason.

    Returns: the copy, or None if there is no network with such a name.

    Raises:
        ConversionError: two copies of the same kind, or two tensors of the same name.
    """
    tensors: list[tuple[str, str, Tensor]] = []  # key, name without wrappers, tensor
    for key, value in _flatten(state):
        if isinstance(value, Tensor):
            name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
            tensors.append((key, name, value))
        else:
            account[key] = "dropped: no tensor of the network"
    prefixes: dict[str, set[str]] = {}
    for _, name, _ in tensors:
        for anchor in anchors:
            if name == anchor or name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                prefixes.setdefault(_kind(prefix), set()).add(prefix)
    kind = next((kind for kind in preference if kind in prefixes), None)
    if kind is None:
        account |= dict.fromkeys((key for key, _, _ in tensors), "dropped: of no network that is known here")
        return None
    if len(prefixes[kind]) > 1:
        found = " and ".join(f'"{prefix}"' for prefix in sorted(prefixes[kind]))
        raise ConversionError(f"two networks are in this file, under {found}: save the one that you mean by itself")
    (prefix,) = prefixes[kind]
    taken: dict[str, Tensor] = {}
    for key, name, value in tensors:
        if name.startswith(prefix) and _kind(name) == kind:
            inner = name.removeprefix(prefix)
            if inner in taken:
                raise ConversionError(f"{key}: without its prefix and wrappers this is a second {inner}")
            taken[inner] = value
        else:
            own = _kind(name)
            other = own if own in prefixes and name.startswith(tuple(prefixes[own])) else kind
            account[key] = f"dropped: {_reason(name, other, kind, prefix)}"
    return Copy(kind, prefix, taken)


def _reason(name: str, other: str, kind: str, prefix: str) -> str:
    """Explain why a tensor is not part of the copy that was taken."""
    if PRETRAINING_HEADS.fullmatch(name):
        return "projection head or loss of pre-training"
    if other != kind:
        return f"of another copy ({other or 'plain'}); taken is {kind or 'plain'}, {prefix or 'no prefix'}"
    return "not of the network" + (f", whose names start with {prefix}" if prefix else "")


def _kind(name: str) -> str:
    """Find the copy that a name belongs to, by its parts."""
    for part in name.split("."):
        for kind, pattern in COPIES.items():
            if pattern.fullmatch(part):
                return kind
    return ""


def _flatten(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, keys joined by "."; a mapping in several places is yielded once."""
    seen = {id(state)}
    stack: list[tuple[str, Any]] = [(str(key), value) for key, value in reversed(list(state.items()))]
    while stack:
        key, value = stack.pop()
        if not isinstance(value, Mapping) or not value or id(value) in seen:
            yield key, value
            continue
        seen.add(id(value))
        stack.extend((f"{key}.{inner}", item) for inner, item in reversed(list(value.items())))
