"""The object graph of a TensorFlow 2 checkpoint: which object holds which tensor, by which paths.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/trackable_object_graph.proto

    _CHECKPOINTABLE_OBJECT_GRAPH   a string among the tensors
        1 node, ...                node 0 is the root; cycles are usual
            1 child                1 node, 2 name of the edge
            2 attribute            1 name, 2 full name, 3 key
            3 slot variable        1 node of the variable, 2 name, 3 node of the slot
            5 whether values are at it or below

    key          edge/edge/.ATTRIBUTES/VARIABLE_VALUE
    … of a slot  edge/edge/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE
    … in parts   edge/.ATTRIBUTES/table-keys, …: the attribute has edge/.ATTRIBUTES/table, or a
                 folder, edge/.ATTRIBUTES/, as its key
    edge         `.` is written `..`, and `/` is `.S`

A key is only one path to an object, and some say nothing (`optimizer/_trainable_variables/3`). The
full name is what the variable was called when it was made, mostly `conv/kernel`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from converter.errors import CorruptFileError, LimitError, RefusedError, SourceError
from converter.formats._protobuf import LENGTH, VARINT, fields, message, number, varint
from converter.formats._tf import MAX_NAME, decoded_name

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "VARIABLE_VALUE"
MARK, SLOT = "/.ATTRIBUTES/", "/.OPTIMIZER_SLOT/"
COPIES = "_all_variables/"  # where Keras 3 exports every variable for a second time

# Keys of metadata: the graph in base64, and texts that describe objects as a JSON object.
GRAPH_METADATA, TEXTS_METADATA = "tensorflow.object_graph", "tensorflow.object_texts"

MAX_GRAPH = 16 << 20  # bytes that are kept
MAX_TEXTS = 4 << 20  # bytes, all together
MAX_FIELDS = 1_000_000
NODE_FIELDS = 4  # that a node counts for, even an empty one
MAX_FACTS = 64  # fields of a child, an attribute or a slot
MAX_PATHS = 8  # offered for a tensor
MAX_DEPTH = 32  # edges of a path that is offered
MAX_STEPS = 200_000  # in search of paths

_LISTS = r".*(variables|weights)|optimizer|keras_api"  # edges that say nothing


class Attribute(NamedTuple):
    """A value of an object."""

    name: str
    full_name: str
    key: str


class Slot(NamedTuple):
    """What an optimizer keeps for a variable."""

    variable: int
    name: str
    node: int


class Node(NamedTuple):
    """An object: its children as (node, edge), its values, its slots."""

    children: list[tuple[int, str]]
    attributes: list[Attribute]
    slots: list[Slot]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Walks the messages of a graph; every field counts against one bound."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = MAX_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        for field in fields(self.data, start, stop):
            self._left -= 1
            if self._left < 0:
                raise LimitError(
                    "the object graph is too large", expected=f"at most {MAX_FIELDS} fields"
                )
            yield field

    def facts(self, start: int, stop: int) -> tuple[dict[int, int], dict[int, str]]:
        """The numbers and the texts of a flat message."""
        numbers: dict[int, int] = {}
        texts: dict[int, str] = {}
        count = 0
        for tag, value, first, end in fields(self.data, start, stop):
            if tag & 7 == VARINT:
                numbers[tag >> 3] = value
            elif tag & 7 == LENGTH:
                texts[tag >> 3] = self.data[first:end].decode(errors="replace")
            count += 1
            if count > MAX_FACTS:
                self._left = 0
                break
        self._left -= count
        return numbers, texts

    def node(self, start: int, stop: int) -> Node:
        node = Node([], [], [])
        self._left -= NODE_FIELDS
        for tag, _, first, end in self.fields(start, stop):
            if tag not in _PARTS:
                continue
            numbers, texts = self.facts(first, end)
            if tag == _CHILD:
                node.children.append((numbers.get(1, 0), texts.get(2, "")))
            elif tag == _ATTRIBUTE:
                node.attributes.append(Attribute(*(texts.get(n, "") for n in (1, 2, 3))))
            else:
                node.slots.append(Slot(numbers.get(1, 0), texts.get(2, ""), numbers.get(3, 0)))
        return node


_NODE = _CHILD = 1 << 3 | LENGTH
_ATTRIBUTE, _SLOT = 2 << 3 | LENGTH, 3 << 3 | LENGTH
_PARTS = {_CHILD, _ATTRIBUTE, _SLOT}


def read_graph(data: bytes) -> list[Node]:
    """The nodes of a graph; `CorruptFileError` when one refers to a node that is not there."""
    reader = _Reader(data)
    nodes = [
        reader.node(start, stop)
        for tag, _, start, stop in reader.fields(0, len(data))
        if tag == _NODE
    ]
    for node in nodes:
        ids = [child for child, _ in node.children]
        ids += [place for slot in node.slots for place in (slot.variable, slot.node)]
        if max(ids, default=0) >= len(nodes):
            raise CorruptFileError(
                "the object graph refers to an object that it does not have",
                tensor=GRAPH,
                expected=f"one of {len(nodes)}",
                found=max(ids),
            )
    return nodes


def escaped(edge: str) -> str:
    """The name of an edge as it stands in a key."""
    return edge.replace(".", "..").replace("/", ".S")


def unescaped(edge: str) -> str:
    """The inverse of `escaped`."""
    return re.sub(r"\.([.S])", lambda found: "." if found[1] == "." else "/", edge)


def owner(name: str, keys: Collection[str]) -> str | None:
    """The key, among those of attributes, that a stored name belongs to."""
    head, mark, _ = name.rpartition(MARK)
    for key in (name, head + mark, name.rpartition("-")[0]):
        if mark and key in keys:
            return key
    return None


class _Step(NamedTuple):
    """The last edge of a path, and the path before it."""

    before: _Step | None
    node: int
    edge: str
    depth: int
    length: int  # characters of the path

    def visits(self, node: int) -> bool:
        step: _Step | None = self
        while step is not None:
            if step.node == node:
                return True
            step = step.before
        return False

    def edges(self) -> list[str]:
        step, found = self, []
        while step.before is not None:
            found.append(escaped(step.edge))
            step = step.before
        return found[::-1]


def _paths(nodes: list[Node]) -> list[list[_Step]]:
    """The shortest paths from the root to each node, at most `MAX_PATHS`, none in circles."""
    found: list[list[_Step]] = [[] for _ in nodes]
    waiting = deque([_Step(None, 0, "", 0, 0)] if nodes else [])
    left = MAX_STEPS
    while waiting:
        step = waiting.popleft()
        if len(found[step.node]) == MAX_PATHS:
            continue
        found[step.node].append(step)
        if step.depth == MAX_DEPTH:
            continue
        for child, edge in nodes[step.node].children[:left]:
            left -= 1
            length = step.length + len(edge)
            if len(found[child]) < MAX_PATHS and length <= MAX_NAME and not step.visits(child):
                waiting.append(_Step(step, child, edge, step.depth + 1, length))
    return found


class Facts(NamedTuple):
    """What two tensors have in common when they are the same: all that the index says of one."""

    dtype: int
    shape: tuple[int, ...]
    size: int
    crc: int


class Objects:
    """A graph beside the tensors of its checkpoint; it is only read when it is asked.

    `tensors` are the names of tensors; `facts` gives None where one is stored in slices.
    """

    def __init__(
        self, data: bytes, tensors: Collection[str], facts: Callable[[str], Facts | None]
    ) -> None:
        self._data = data
        self._tensors = tensors
        self._facts = facts

    @cached_property
    def _graph(self) -> list[Node]:
        return read_graph(self._data)

    @cached_property
    def _owners(self) -> dict[str, str]:
        """Every tensor with the key of its attribute."""
        keys = {attribute.key for node in self._graph for attribute in node.attributes}
        owners = ((name, owner(name, keys)) for name in self._tensors)
        return {name: key for name, key in owners if key is not None}

    @cached_property
    def full_names(self) -> dict[str, str]:
        """Tensors with what their variables were called; several may have the same."""
        known = {a.key: a.full_name for node in self._graph for a in node.attributes if a.full_name}
        names = (
            (name, _joined(known[key], name, key))
            for name, key in self._owners.items()
            if key in known
        )
        return {name: alias for name, alias in names if _usable(alias)}

    @cached_property
    def paths(self) -> dict[str, list[str]]:
        """Tensors with the paths that lead to them, the one that says most before the others."""
        steps = {
            attribute.key: steps
            for node, steps in zip(self._graph, _paths(self._graph), strict=True)
            for attribute in node.attributes
        }
        found = {}
        for name, key in self._owners.items():
            own = key.rpartition(MARK)[0].split("/")
            paths = sorted((step.edges() for step in steps[key]), key=lambda path: _rank(path, own))
            aliases = (_joined("/".join(path), name, key) for path in paths if path)
            usable = [alias for alias in aliases if _usable(alias)]
            if usable:
                found[name] = usable
        return found

    @cached_property
    def copies(self) -> dict[str, str]:
        """Tensors that Keras 3 exported for a second time, with their first."""
        first: dict[tuple[str, Facts], list[str]] = {}
        for name, full_name in self.full_names.items():
            facts = self._facts(name)
            if facts is not None:
                first.setdefault((full_name, facts), []).append(name)
        found = {}
        for group in first.values():
            originals = [name for name in group if not name.startswith(COPIES)]
            if len(originals) == 1 == len(group) - 1:
                (copy,) = set(group) - {*originals}
                found[copy] = originals[0]
        return found

    def names(self, scheme: str) -> dict[str, str]:
        """Tensors with their names of a scheme: those that are nobody else's."""
        aliases = (
            {name: alias for name, alias in self.full_names.items() if name not in self.copies}
            if scheme == "full_name"
            else {name: paths[0] for name, paths in self.paths.items()}
        )
        times = Counter(aliases.values())
        return {
            name: alias
            for name, alias in aliases.items()
            if times[alias] == 1 and alias not in self._tensors
        }

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Tensors with all their other names: the full name, then the paths."""
        found = {}
        for name in self._tensors:
            full = self.full_names.get(name)
            both = [*([full] if full else []), *self.paths.get(name, ())]
            if both:
                found[name] = tuple(dict.fromkeys(both))
        return found


class Aliases(Mapping[str, tuple[str, ...]]):
    """The aliases of all tensors; the graph is read when the first is asked for."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self._objects.aliases[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects.aliases)

    def __len__(self) -> int:
        return len(self._objects.aliases)


def _joined(alias: str, name: str, key: str) -> str:
    """An alias of an attribute as one of a tensor, which may be a part of what it stores."""
    rest = name[len(key) :]
    return f"{alias}/{rest}" if rest and key.endswith("/") else alias + rest


def _usable(alias: str) -> bool:
    if not alias or len(alias) > MAX_NAME:
        return False
    key = alias.encode(errors="surrogatepass")
    return len(key) <= MAX_NAME and not decoded_name(key)[1]


def _rank(path: list[str], own: list[str]) -> tuple[bool, bool, bool, int]:
    """Sorts paths: by attributes rather than through lists, then the key's own, then short ones."""
    listed = any(re.fullmatch(_LISTS, edge) for edge in path)
    return listed, bool(path) and path[-1].isdecimal(), path != own, len(path)


# ── what travels as metadata ─────────────────────────────────────────────────────────────────────


def packed(graph: bytes, texts: Mapping[str, str]) -> dict[str, str]:
    """A graph, and the texts that go with it, as metadata."""
    metadata = {GRAPH_METADATA: base64.b64encode(graph).decode()}
    if texts:
        metadata[TEXTS_METADATA] = json.dumps(texts, sort_keys=True)
    return metadata


def _unpacked(metadata: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The inverse of `packed`; nothing when it is somebody else's metadata."""
    try:
        graph = base64.b64decode(metadata.get(GRAPH_METADATA, ""), validate=True)
        texts = json.loads(metadata.get(TEXTS_METADATA, "{}"))
    except (binascii.Error, ValueError, RecursionError):
        return b"", {}
    known = isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())
    return graph, texts if known else {}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def to_write(names: Iterable[str], metadata: Mapping[str, str]) -> dict[str, bytes]:
    """The strings, the graph among them, that go beside tensors of these names.

    Nothing when no name is the key of an object's value. The graph in the metadata is used when it
    has all of these keys, without the attributes whose tensors are not there; otherwise one is
    made of the keys.
    """
    names = {*names}
    keys = sorted(name for name in names if MARK in name)
    if not keys or GRAPH in names:
        return {}
    graph, texts = _unpacked(metadata)
    kept = _fitted(graph, keys, texts) if graph else None
    if kept is None:
        return {GRAPH: made_graph(keys)}
    texts = {key: text for key, text in texts.items() if key not in names and _writable(key)}
    return {GRAPH: kept, **{key: text.encode() for key, text in texts.items()}}


def _writable(key: str) -> bool:
    return MARK in key and _usable(key)


def _fitted(graph: bytes, keys: list[str], texts: Collection[str]) -> bytes | None:
    """A graph for these keys; None when it is that of something else."""
    try:
        nodes = read_graph(graph)
    except (SourceError, RefusedError):
        return None
    known = {attribute.key for node in nodes for attribute in node.attributes}
    found = ((name, owner(name, known)) for name in keys)
    owners = {name: key for name, key in found if key is not None}
    if len(owners) < len(keys):
        return None
    halves = {key for name, key in owners.items() if _is_half(name, owners)}
    gone = known - {*owners.values()} - set(texts) | halves
    return _without(graph, nodes, gone) if gone else graph


def _is_half(name: str, names: Collection[str]) -> bool:
    """Whether a name is of a table's keys without its values, or the other way round."""
    table, _, part = name.rpartition("-")
    others = {"keys": "values", "values": "keys"}
    return part in others and MARK in table and f"{table}-{others[part]}" not in names


def _without(graph: bytes, nodes: list[Node], gone: set[str]) -> bytes:
    """The graph without some attributes; all else stays as it is stored."""
    lost = {
        place
        for place, node in enumerate(nodes)
        if node.attributes and all(attribute.key in gone for attribute in node.attributes)
    }
    reader = _Reader(graph)
    pieces = []
    for tag, _, start, stop in reader.fields(0, len(graph)):
        if tag != _NODE:
            pieces.append(message(tag >> 3, graph[start:stop]))
            continue
        inner, at = [], start
        for part, _, first, end in reader.fields(start, stop):
            numbers, texts = reader.facts(first, end) if part in {_ATTRIBUTE, _SLOT} else ({}, {})
            dead = (part == _ATTRIBUTE and texts.get(3, "") in gone) or (
                part == _SLOT and numbers.get(3, 0) in lost
            )
            if not dead:
                inner.append(graph[at:end])
            at = end
        pieces.append(message(1, b"".join(inner)))
    return b"".join(pieces)


class _Made(NamedTuple):
    """A node that is being made."""

    children: dict[str, int]
    attributes: list[tuple[str, str]]  # name, key
    slots: list[Slot]


def made_graph(keys: Iterable[str]) -> bytes:
    """The graph that the paths in keys describe."""
    nodes = [_Made({}, [], [])]

    def node_at(path: str) -> int:
        place = 0
        for edge in path.split("/") if path else ():
            children = nodes[place].children
            if edge not in children:
                children[edge] = len(nodes)
                nodes.append(_Made({}, [], []))
            place = children[edge]
        return place

    for key in keys:
        path, _, name = key.rpartition(MARK)
        variable, slot, rest = path.partition(SLOT)
        if slot:
            optimizer, _, slot_name = rest.rpartition("/")
            entry = Slot(node_at(variable), unescaped(slot_name), len(nodes))
            nodes.append(_Made({}, [], []))
            nodes[node_at(optimizer)].slots.append(entry)
            place = entry.node
        else:
            place = node_at(path)
        nodes[place].attributes.append((name, key))
    return b"".join(message(1, _node_bytes(node)) for node in nodes)


def _node_bytes(node: _Made) -> bytes:
    """A TrackableObject."""
    parts = [
        message(1, number(1, child) + message(2, unescaped(edge).encode()))
        for edge, child in node.children.items()
    ]
    parts += [
        message(2, b"".join(message(at, text.encode()) for at, text in texts.items()))
        for name, key in node.attributes
        for texts in ({1: unescaped(name), 2: _path_of(key), 3: key},)
    ]
    parts += [
        message(3, number(1, slot.variable) + message(2, slot.name.encode()) + number(3, slot.node))
        for slot in node.slots
    ]
    return b"".join([*parts, message(5, varint(1 << 3 | VARINT) + varint(1))])


def _path_of(key: str) -> str:
    return key.rpartition(MARK)[0].replace(SLOT, "/")
