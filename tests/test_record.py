"""Records: what is read quickly is what their pydantic models say, and nothing else is."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import record
from converter.language import model, yaml
from converter.language.include import shipped
from converter.ops import OPS
from converter.record import AtLeast, Before, Check, FieldError, Record, Refused, field

# ── kinds of our own: every feature ──────────────────────────────────────────────────────────


def _short(value: str) -> str:
    if len(value) > 3:
        raise ValueError("too long")
    return value


def _ordered(value: Any) -> Any:
    """The value sorted: a check may put right what it returns."""
    return type(value)(sorted(value))


def _no_whole_number(value: Any) -> Any:
    if type(value) is int:
        raise ValueError("a whole number")
    return value


class Leaf(Record):
    """Scalars of each type, in unions too."""

    kind: ClassVar[str] = "leaf"

    text: Annotated[str, Check(_short)] = "a"
    whole: Annotated[int, AtLeast(1)] = field(default=2, key="from", about="a keyword of Python")
    real: float = 0.5
    flag: bool = False
    either: int | float = 1
    other: float | int | bool | None = None
    word: Literal["x", 1, True] | None = None
    one: Literal[1, "1"] = 1
    anything: Any = None


class Node(Record):
    """Leaves inside of everything."""

    leaf: Leaf
    leaves: list[Leaf] = field(default_factory=list)
    several: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = field(default_factory=dict)
    mixed: str | Leaf | list[str | Leaf] | None = None


class Unions(Record):
    """Types that take the same value, of which the nearest is meant, not the first."""

    number: float | Annotated[int, AtLeast(0)] = 0
    numbers: list[float] | list[int] | None = None
    table: dict[str, float] | dict[str, int] | None = None
    node: Leaf | dict[str, Any] | None = None
    item: Annotated[str | int | tuple[int, ...], Check(lambda value: value)] = 0
    bare: Leaf | dict | list[float] | list | None = None  # type: ignore[type-arg]
    fraction: bool | float = False


class Marks(Record):
    """What stands in `Annotated`, alone and together."""

    some: Annotated[tuple[int, ...], Check(_ordered)] = ()
    real: Annotated[float, Before(_no_whole_number)] = 0.5
    least: Annotated[int | float, AtLeast(0)] = 0
    both: Annotated[int, Check(lambda value: value), AtLeast(3)] = 5
    inner: Annotated[Annotated[float, AtLeast(0)] | None, Check(lambda value: value)] = None
    pair: tuple[int, str] = (1, "a")


class First(Record):
    """A base with a required field."""

    a: int
    b: str = "b"


class Second(Record):
    """Another, with a long form and a check."""

    c: float = 1.0

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"a": 0, "c": value} if isinstance(value, int | float) else value

    def check(self) -> None:
        if self.c < 0:
            raise FieldError("negative", "c")


class Both(First, Second):
    """Both of them; a field has another type and default here."""

    b: int | None = None  # type: ignore[assignment]
    d: list[int] = field(default_factory=lambda: [1])


class Strict(Record):
    """Types of what pydantic would convert otherwise."""

    strict: ClassVar[bool] = True

    flag: bool = False
    whole: int = 0
    real: float = 0.0
    text: str = ""
    some: tuple[int, ...] = ()
    leaf: Leaf | None = None  # which is not strict
    other: dict[str, list[int | str]] = field(default_factory=dict)


class StrictBoth(Strict, Second):
    """A strict base makes a strict kind."""


OURS = [Leaf, Node, Unions, Marks, First, Second, Both, Strict, StrictBoth]
MODELS = [
    kind
    for kind in vars(model).values()
    if isinstance(kind, type) and issubclass(kind, Record) and kind.fields
]

# ── values: those of shipped files, those that types say, and neither ────────────────────────

WRONG = [
    *(None, True, False, 0, 1, -1, 3, 10**18, 10**400, -(10**400)),
    *(0.0, 1.0, 2.5, -0.5, math.nan, math.inf, -math.inf, 1e308),
    *("", "1", "1.5", "true", "yes", "x", "float32", "[o] i", "a string that is long"),
    *([], {}, [[]], [None], [1, "a"], [1, 2.5], ["x", True], (), (1, 2), (1, "a"), [2, 1, 0]),
    *({"a": 1}, {"from": 3}, {"": None}, {1: 2}, {"x": [1]}, {"name": "a"}, {"text": "ab"}),
    *(b"bytes", 1j, {1}, frozenset(), Leaf(), type),
]
# Equal and hash-equal values of different types are different here: none may be shared.
wrong = st.integers(0, len(WRONG) - 1).map(lambda k: copy.deepcopy(WRONG[k]))


MORE: dict[str, list[Any]] = {  # of ops that no shipped file needs
    "transpose": [[1, 0], {"order": [2, 0, 1]}],
    "reshape": [[25088, "h"], {"to": [4], "from": [2, 2]}],
    "part": [{"axis": "[o] i", "index": 0, "of": 3}],
    "slice": [{"axis": 0, "stop": 4}, {"axis": "[o] i", "start": "h", "stop": "w", "pad": 0.5}],
    "cast": ["float16", {"from": "bfloat16", "to": "float32"}],
    "fold_batchnorm": [{"axis": "h w i [o]", "of": ["kernel", "mean", "variance"]}],
    "dequantise": [{}, {"axis": "[o] i"}],
}


@cache
def documents() -> list[Any]:
    """The data of each shipped mapping file."""
    found = [yaml.load(path.read_text()).data for path in sorted(shipped().rglob("*.yaml"))]
    assert len(found) > 100
    return found


@cache
def entries() -> dict[type[Record], list[Any]]:
    """What stands in shipped files, by the kind that reads it."""
    found: dict[type[Record], list[Any]] = {kind: [] for kind in (*MODELS, *OPS.values())}
    found[model.MappingModel] = documents()
    for data in documents():
        found[model.Side] += [data[side] for side in ("source", "target") if side in data]
        for key, kind in {
            "rules": model.RuleModel,
            "include": model.IncludeModel,
            "drop": model.DropModel,
            "make": model.MakeModel,
            "probes": model.ProbeModel,
            "tests": model.ExampleModel,
        }.items():
            found[kind] += data.get(key, [])
        for value in _dicts(data):
            if "ops" in value and "name" in value:
                found[model.BranchModel].append(value)
            for step in value.get("ops", []):
                ((word, what),) = step.items()
                found[OPS[word]].append(what)
    for word, several in MORE.items():
        found[OPS[word]] += several
    assert all(found.values())
    return found


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from _dicts(each)


TEXTS = ["x", "", "abc", "abcd", "float32", "string", "[o] i", "a [b]", "i o -> o i", "1", "keras"]


@cache
def typed(hint: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - by kind of type
    """Values that are of a type, more or less."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Record):
        return st.deferred(lambda: written(hint))
    if origin is Annotated:
        return typed(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (list, tuple):
        lists = st.lists(typed(arguments[0]), max_size=3)
        return st.one_of(lists, lists.map(tuple)) if origin is tuple else lists
    if origin is dict:
        return st.dictionaries(st.sampled_from(["a", "b", "o"]), typed(arguments[1]), max_size=2)
    if arguments:
        return st.one_of(*map(typed, arguments))
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.one_of(st.integers(-1, 4), st.integers()),
        float: st.one_of(st.floats(), st.integers(-1, 4)),
        str: st.sampled_from(TEXTS),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return plain.get(hint, wrong)


@cache
def written(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Long forms of a kind by its types; optional fields may be left out."""
    hints = record._hints(kind)
    fields = {known.key: typed(hints[name]) for name, known in kind.fields.items()}
    needed = {known.key for known in kind.fields.values() if known.required}
    return st.fixed_dictionaries(
        {key: fields[key] for key in needed},
        optional={key: value for key, value in fields.items() if key not in needed},
    )


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) in plain data."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    return found + [
        place
        for key in keys
        if isinstance(value[key], dict | list)
        for place in _places(value[key])
    ]


@st.composite
def mutated(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> Any:
    """A value with some keys dropped, added or renamed, and some values replaced."""
    value = copy.deepcopy(draw(values))
    for _ in range(draw(st.integers(0, 2))):
        if not isinstance(value, dict | list) or not (places := _places(value)):
            return draw(st.one_of(wrong, st.just(value)))
        container, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "drop", "add", "rename"]))
        if how == "replace":
            container[key] = draw(wrong)
        elif how == "drop":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, draw(wrong))
        elif how == "add":
            container[draw(st.sampled_from(["", "more", "about", "name", "a"]))] = draw(wrong)
        else:
            container[draw(st.sampled_from([f"{key}s", "except", "x", 1]))] = container.pop(key)
    return value


# ── the law ──────────────────────────────────────────────────────────────────────────────────


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal and of the same types, deep; a NaN is a NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Record):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(
            same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return str(a) == str(b)  # 0.0 is not -0.0
    return bool(a == b)


def judged(kind: type[Record], value: Any) -> Record | None:
    """What the pydantic model makes of a value; None when it is wrong."""
    from pydantic import ValidationError

    try:
        found: Record = record._of_models(record._model(kind).model_validate(value))
    except ValidationError:
        return None
    return found


def lawful(kind: type[Record], value: Any) -> tuple[bool, Record | None]:
    """Show the law for a value: whether it is read quickly, and what is read, None if nothing."""
    before = copy.deepcopy(value)
    right = judged(kind, value)
    quick = None
    try:
        quick = record._record(kind, value)
    except (ValueError, OverflowError):
        pass  # it is left to the model
    else:
        assert right is not None, f"{quick} is wrong"
        assert same(quick, right), f"{quick} is {right}"
    if right is None:
        with pytest.raises(Refused, match="validation error") as caught:
            kind.read(value)
        assert caught.value.details
    else:
        assert same(kind.read(value), right)
    assert same(value, before), "reading changes nothing"
    return quick is not None, right


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_what_is_read_quickly_is_what_the_model_says(kind: type[Record]) -> None:
    ways = set()

    @settings(max_examples=70)
    @given(st.one_of(written(kind), mutated(written(kind)), wrong))
    def law(value: Any) -> None:
        ways.add(lawful(kind, value)[0])

    law()
    assert ways == {True, False}


@pytest.mark.parametrize("kind", [*MODELS, *OPS.values()], ids=lambda kind: kind.__name__)
def test_the_kinds_of_mapping_files_are_read_as_their_models_say(kind: type[Record]) -> None:
    values = st.sampled_from(entries()[kind])

    @settings(max_examples=30)
    @given(st.one_of(mutated(values), mutated(written(kind)), wrong))
    def law(value: Any) -> None:
        lawful(kind, value)

    law()


def test_every_shipped_file_is_read_quickly_and_as_its_model_says() -> None:
    for kind, values in entries().items():
        for value in values:
            quick = record._record(kind, value)  # nothing is left to the model
            assert same(quick, judged(kind, value))
    assert sum(map(len, entries().values())) > 1000


def test_reading_what_is_right_loads_no_pydantic() -> None:
    code = """
import json, sys
from converter.language import yaml
from converter.language.include import shipped
from converter.language.model import MappingModel
from converter.ops import OPS
from converter.record import Refused

for path in shipped().rglob("*.yaml"):
    found = MappingModel.read(yaml.load(path.read_text()).data)
    for rule in found.rules:
        for step in rule.ops:
            for word, value in step.items():
                OPS[word].read(value)
right = sorted(name for name in sys.modules if name.startswith("pydantic"))
try:
    MappingModel.read({})
except Refused:
    print(json.dumps([right, "pydantic" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], True]


# ── what a record is ─────────────────────────────────────────────────────────────────────────


FLAT = [Leaf, Marks, First, Second, Both, model.MakeModel, model.IncludeModel, *OPS.values()]


@pytest.mark.parametrize("kind", FLAT, ids=lambda kind: kind.__name__)
def test_a_record_is_written_replaced_and_shown_as_what_it_is(kind: type[Record]) -> None:
    values = st.sampled_from(entries().get(kind, [{"a": 1}, {}]))

    shown = []

    @settings(max_examples=20)
    @given(st.one_of(values, written(kind)))
    def laws(value: Any) -> None:
        found = judged(kind, value)
        if found is None or re.search("nan|<", repr(found)):  # no NaN is itself
            return
        shown.append(found)
        long = found.written()
        assert kind.read(long) == found
        assert all(
            long[known.key] != known.value() for known in kind.fields.values() if known.key in long
        )
        assert set(long) >= {known.key for known in kind.fields.values() if known.required}
        assert same(found.replaced(), found)
        assert found.replaced() is not found
        assert eval(repr(found), {kind.__name__: kind, "inf": math.inf}) == found  # noqa: S307

    laws()
    assert shown


def test_a_record_is_frozen() -> None:
    leaf = Leaf(text="b")
    with pytest.raises(AttributeError, match="Leaf is frozen"):
        leaf.text = "c"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Leaf is frozen"):
        leaf.more = "c"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="Leaf is frozen"):
        del leaf.text
    assert leaf == Leaf(text="b")


def test_records_are_equal_when_their_kinds_and_fields_are() -> None:
    class Other(First):
        pass

    one, two = First(a=1), First(a=1, b="b")
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, First(a=2), Other(a=1)}) == 3
    assert one != First(a=2)
    assert one != Other(a=1)
    assert one != {"a": 1, "b": "b"}
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        hash(Both(a=1))


def test_a_record_shows_its_fields_those_of_its_bases_first() -> None:
    assert repr(Both(a=1)) == "Both(c=1.0, a=1, b=None, d=[1])"
    assert repr(Node(leaf=Leaf())).startswith("Node(leaf=Leaf(text='a', whole=2, real=0.5, ")


def test_another_value_of_a_field_is_checked() -> None:
    second = Second(c=2.0)
    assert second.replaced(c=3.0) == Second(c=3.0)
    assert second == Second(c=2.0)
    with pytest.raises(FieldError, match="negative") as caught:
        second.replaced(c=-1.0)
    assert caught.value.field == "c"
    with pytest.raises(TypeError, match="Second has no `d`"):
        second.replaced(d=1)


def test_a_record_is_made_of_its_fields_by_name() -> None:
    assert Leaf(whole=3) == Leaf.read({"from": 3})
    with pytest.raises(TypeError, match="First needs `a`"):
        First(b="c")
    with pytest.raises(TypeError, match="First has no `c`"):
        First(a=1, c=1)
    with pytest.raises(TypeError, match="Leaf has no `from`"):
        Leaf(**{"from": 3})
    with pytest.raises(FieldError, match="negative"):
        StrictBoth(c=-1.0)
    assert Both(a=1).d is not Both(a=1).d


def test_fields_are_those_of_the_bases_and_its_own() -> None:
    assert set(Both.fields) == {"a", "b", "c", "d"}
    assert "kind" not in Leaf.fields  # a ClassVar
    assert Leaf.kind == "leaf"
    assert Leaf.fields["whole"] == record.Field("from", 2, None, "a keyword of Python")
    assert [name for name, known in Both.fields.items() if known.required] == ["a"]
    assert (Both.fields["b"].value(), Both.fields["d"].value()) == (None, [1])
    assert StrictBoth.strict
    assert First.fields["b"].value() == "b"  # as before `Both`


def test_the_schema_is_of_what_stands_in_a_file() -> None:
    found = record.schema(Leaf)
    assert found["properties"]["from"] == {
        "type": "integer",
        "minimum": 1,
        "default": 2,
        "title": "From",
        "description": "a keyword of Python",
    }
    assert found["additionalProperties"] is False
    assert record.schema(Node)["required"] == ["leaf"]


# ── what is refused ──────────────────────────────────────────────────────────────────────────

RULE = {"source": "a", "target": "b"}


@pytest.mark.parametrize(
    ("kind", "value", "details"),
    [
        (First, {}, {("a",): "missing"}),
        (First, {"a": 1, "more": 2}, {("more",): "extra_forbidden"}),
        (First, [1], {(): "model_type"}),
        (
            Leaf,
            {"from": 0, "text": "long"},
            {("from",): "greater_than_equal", ("text",): "value_error"},
        ),
        (Leaf, {"whole": 3}, {("whole",): "extra_forbidden"}),
        (Node, {"leaf": {"flag": 3}}, {("leaf", "flag"): "bool_parsing"}),
        (
            Node,
            {"leaf": {}, "several": [{}, {"text": 1}], "named": {"a": {"word": "y"}}},
            {("several", 1, "text"): "string_type", ("named", "a", "word"): "literal_error"},
        ),
        (Both, -1, {(): "value_error"}),
        (Marks, {"both": 2, "real": 1}, {("both",): "value_error", ("real",): "value_error"}),
        (Strict, {"whole": "1", "some": [1]}, {("whole",): "int_type", ("some",): "tuple_type"}),
        (
            model.MappingModel,
            {"mapping": True, "rules": [RULE, {**RULE, "optional": "yes"}, {"source": "a"}]},
            {
                ("mapping",): "value_error",
                ("rules", 1, "optional"): "bool_type",
                ("rules", 2, "target"): "missing",
            },
        ),
        (OPS["part"], {"axis": 0, "index": 3, "of": 2}, {(): "value_error"}),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    kind: type[Record], value: Any, details: dict[tuple[Any, ...], str]
) -> None:
    with pytest.raises(Refused, match=f"{len(details)} validation error") as caught:
        kind.read(value)
    assert {detail["loc"]: detail["type"] for detail in caught.value.details} == details
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, record._Doubtful)


def test_a_finding_carries_the_error_that_a_check_raised() -> None:
    with pytest.raises(Refused, match="negative") as caught:
        Both.read({"a": 1, "c": -1})
    (detail,) = caught.value.details
    error = detail["ctx"]["error"]
    assert isinstance(error, FieldError)
    assert (str(error), error.field) == ("negative", "c")


# ── cases that were once wrong ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "value", "name", "expected"),
    [
        (Node, {"leaf": {"from": "3"}, "several": [{}]}, "several", (Leaf(),)),
        (Unions, {"number": 1}, "number", 1),
        (Unions, {"numbers": [1]}, "numbers", [1]),
        (Unions, {"table": {"a": 1}}, "table", {"a": 1}),
        (Unions, {"node": {"text": "b"}}, "node", Leaf(text="b")),
        (Unions, {"bare": {"text": "b"}}, "bare", Leaf(text="b")),
        (Unions, {"bare": {"more": "b"}}, "bare", {"more": "b"}),
        (Unions, {"fraction": 1}, "fraction", 1.0),
        (Marks, {"some": [2, 0, 1]}, "some", (0, 1, 2)),
        (Marks, {"pair": [2, "b"]}, "pair", (2, "b")),
        (Strict, {"real": 2, "leaf": {"from": "3"}}, "leaf", Leaf(whole=3)),
        (Leaf, {"real": 2**53 + 1}, "real", 2.0**53),
        (Leaf, {"word": True}, "word", True),
        (Leaf, {"one": True}, "one", 1),
        (Leaf, {"one": 1.0}, "one", 1),
    ],
)
def test_of_several_ways_to_read_a_value_the_nearest_is_taken(
    kind: type[Record], value: Any, name: str, expected: Any
) -> None:
    _, found = lawful(kind, value)
    assert same(getattr(found, name), expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Marks, {"pair": [1, "a", 2]}),
        (Marks, {"pair": [1]}),
        (Marks, {"real": 1}),
        (Marks, {"inner": math.nan}),
        (Leaf, {"real": 10**400}),
        (Leaf, {"either": "one"}),
        (Unions, {"node": Leaf()}),  # a record stands in no file
    ],
)
def test_nothing_wrong_is_read_quickly(kind: type[Record], value: Any) -> None:
    assert lawful(kind, value) == (False, None)
