"""YAML as people mean it: the safe loader in C, in which a key stands once, numbers are decimal, and aliases stay small."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe loader in C: ten times faster where libyaml is there
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
REAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
NUMBERS = {"tag:yaml.org,2002:int": INTEGER, "tag:yaml.org,2002:float": REAL}
MOST_ALIASED = 100_000  # values that a document with aliases may stand for
DEEPEST = 200  # levels of a document: at some ten thousand the parser in C overflows its stack
OPENING = re.compile(r"[\[\]{}]|(?:[-?:][ \t]+){50}")


class PlainLoader(SAFE_LOADER):  # type: ignore[misc, valid-type]
    """Loads no number that YAML 1.1 and Python alone take for one: ``1_000``, ``12:30`` (750 to YAML), ``010`` (8) are text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in known] for first, known in SAFE_LOADER.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        _Judge().size(node)
        return super().construct_document(node)


class _Judge:
    """Refuses what the parser takes: keys given twice, and aliases that stand for themselves or for more than can be held."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}  # of nodes that are done; 0 while they are being looked at
        self._aliased = False

    def size(self, node: yaml.Node) -> int:
        """How many values a node stands for, its aliases written out."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        known = self._sizes.get(id(node))
        if known is not None:
            self._aliased = True
            if not known:
                raise ConstructorError(None, None, "an alias stands for what it is a part of", node.start_mark)
            return known
        self._sizes[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value
        total = 1 + sum([1 if isinstance(part, yaml.ScalarNode) else self.size(part) for part in parts])
        if self._aliased and total > MOST_ALIASED:
            raise ConstructorError(None, None, f"its aliases stand for more than {MOST_ALIASED:,} values", node.start_mark)
        self._sizes[id(node)] = total
        return total


def _refuse_repeated(node: yaml.MappingNode) -> None:
    first: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and (earlier := first.setdefault((key.tag, key.value), key)) is not key:
            problem = f"the key {key.value!r} is given twice, first in row {earlier.start_mark.line + 1}"
            raise ConstructorError(None, None, problem, key.start_mark)


def _check_depth(text: str) -> None:
    """Raise for a text of absurd depth: guessed from its brackets, and followed event by event where the guess says so."""
    depth = 0
    for mark in OPENING.findall(text):
        depth += 1 if mark in "[{" else -1 if mark in "]}" else DEEPEST
        if depth > DEEPEST:
            break
    else:
        return
    depth = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConstructorError(None, None, f"more than {DEEPEST} levels", event.start_mark)


def load_yaml(text: str) -> Any:
    """What a YAML text says. Raises `yaml.YAMLError`."""
    _check_depth(text)
    try:
        return yaml.load(text, Loader=PlainLoader)
    except ValueError as error:  # of a date such as 2020-13-45
        raise yaml.YAMLError(" ".join(str(error).split())) from error
