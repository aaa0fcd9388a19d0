"""Read and write YAML of plain values, without running code."""

import re
from pathlib import Path
from typing import Any

import yaml

from runtime.errors import UserError

MAX_VALUES = 100_000
"""More than any config has. Aliases of aliases could make billions of values of a few lines."""

EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")
"""Numbers such as 5e-5. YAML 1.1 reads them as text, OmegaConf as numbers."""

NAME_TAG = "tag:yaml.org,2002:python/name:"

PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class Reference(str):
    """Name of a class or function, written as `!!python/name:`; reading it imports nothing."""


class Loader(yaml.SafeLoader):
    """Reads null, booleans, numbers, texts, lists and dicts; dates stay texts; other tags are errors."""

    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in PLAIN_TAGS}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_data(self) -> Any:
        """Construct the document, unless aliases make it too large."""
        node = self.get_single_node()
        if node is None:
            return None
        if self._count(node, {}) > MAX_VALUES:
            raise yaml.YAMLError(f"its aliases make more than {MAX_VALUES} values")
        return self.construct_document(node)

    def _count(self, node: yaml.Node, known: dict[int, int]) -> int:
        """Count the values of a node after the expansion of its aliases."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in known:
            known[id(node)] = MAX_VALUES + 1  # in case the node is part of itself
            pairs = isinstance(node, yaml.MappingNode)
            children = [child for pair in node.value for child in pair] if pairs else node.value
            known[id(node)] = 1 + sum(self._count(child, known) for child in children)
        return known[id(node)]

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> Any:
        """Raise an error for a key that is given twice. YAML would take the last one."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"a second {key.value!r}", key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def refuse(self, node: yaml.Node) -> Any:
        """Raise an error for a tag that is not plain."""
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"the tag {tag} is refused: a file holds plain values, and nothing in it is run",
            node.start_mark,
        )


class Dumper(yaml.SafeDumper):
    """Writes values that `Loader` reads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read_name(loader: Loader, name: str, node: yaml.Node) -> Reference:
    return Reference(name)


def _write_name(dumper: Dumper, name: Reference) -> yaml.Node:
    return dumper.represent_scalar(NAME_TAG + name, "")


Loader.add_constructor(None, Loader.refuse)  # None stands for every other tag
Loader.add_multi_constructor(NAME_TAG, _read_name)
Dumper.add_representer(Reference, _write_name)
for _kind in (Loader, Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Returns: nested dicts and lists of None, bool, int, float, str and `Reference`.

    Raises:
        UserError: the file is no YAML, or has a tag that is not plain, a key twice, or too many aliases.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        return parse_yaml(content.decode("utf-8"), str(path))
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # also of `!!int x` and deep nesting
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str, name: str = "a text") -> Any:
    """Read YAML from a text, with its name for error messages; see `load_yaml`."""
    loader = Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(content: Any) -> str:
    """Write plain values as YAML with sorted keys; `parse_yaml` reads them back."""
    return yaml.dump(content, Dumper=Dumper, default_flow_style=None, allow_unicode=True, width=9999)
