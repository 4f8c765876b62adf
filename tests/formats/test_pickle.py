"""The pickle interpreter against Python's own, and pickles that want something else."""

import argparse
import collections
import contextlib
import datetime as dt
import fractions
import io
import pathlib
import pickle
import pickletools
import time
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import _pickle
from converter.formats._pickle import CONTAINERS, Pickler, Stub, StubObject, Unpickler

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(data, table=CONTAINERS, **options):
    return Unpickler(data, table, **options).load()


# ── values ───────────────────────────────────────────────────────────────────────────────────────

keys = st.one_of(
    st.text(), st.integers(), st.binary(), st.booleans(), st.none(), st.floats(allow_nan=False)
)
keys |= st.tuples(keys, keys) | st.frozensets(keys, max_size=3)
values = st.recursive(
    keys | st.complex_numbers(allow_nan=False) | st.sets(keys, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(keys, inner, max_size=5)
        | st.dictionaries(keys, inner, max_size=5).map(collections.OrderedDict)
        | st.binary().map(bytearray)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(value=values, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_are_what_python_reads(value, protocol):
    data = pickle.dumps(value, protocol)
    unpickler = Unpickler(data, CONTAINERS)
    assert unpickler.load() == value
    assert unpickler.position == len(data)


@pytest.mark.parametrize("put", [b"q\x01", b"r\1\0\0\0", b"p1\n"])
@pytest.mark.parametrize("get", [b"h\x01", b"j\1\0\0\0", b"g1\n"])
def test_the_memo_may_be_numbered_from_one(put, get):  # as Python 2 did
    data = b"](K\x07" + put + b"K\x08r\2\0\0\0" + get + b"h\x02e."
    assert load(data) == [7, 8, 7, 8] == pickle.loads(data)  # noqa: S301 - our own bytes


def test_what_is_memoised_takes_the_number_that_python_gives_it():
    """How many are remembered, whatever their numbers: after `q` with 5 come 1, 2 and 3."""
    data = b"\x80\x04(Nq\x05K\x07\x94K\x08\x94K\x09\x94h\x01h\x02h\x03t."
    expected = (None, 7, 8, 9, 7, 8, 9)
    assert load(data) == expected == pickle.loads(data)  # noqa: S301 - our own bytes


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_values_shared_values_and_cycles(protocol):
    shared = ["x" * 300, b"y" * 300, 1 << 4000, -(1 << 40), 70_000, -1, 1.5, float("-inf")]
    value = {
        "many": list(range(3000)),
        "shared": [shared, shared],
        "d": dict.fromkeys(range(9)),
    }
    value["loop"] = value["many"]
    found = load(pickle.dumps(value, protocol))
    assert found == value
    assert found["shared"][0] is found["shared"][1]
    loop = []
    loop.append(loop)
    found = load(pickle.dumps(loop, protocol))
    assert found[0] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_of_the_standard_library(protocol):
    found = load(
        pickle.dumps(
            [
                collections.Counter("abca"),
                collections.defaultdict(list, a=[1]),
                slice(1, 2),
                range(3),
            ],
            protocol,
        )
    )
    assert found == [
        {"a": 2, "b": 1, "c": 1},
        {"a": [1]},
        ("slice", 1, 2, None),
        ("range", 0, 3, 1),
    ]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"I01\n.", True),
        (b"I-7\n.", -7),
        (b"L12L\n.", 12),
        (b"S'a\\x41\\n'\n.", "aA\n"),
        (b"U\x02\xff\xfe.", b"\xff\xfe"),
        (b"T\x02\0\0\0ab.", "ab"),
        (b"V\\u20ac\n.", "€"),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"(K\x01K\x02d.", {1: 2}),
        (b"K\x012\x86.", (1, 1)),
        (b"K\x01K\x020.", 1),
        (b"K\x01(K\x021.", 1),
        (b"K\x01(0.", 1),
        (b"K\x07p300\n0g300\n.", 7),
        (b"K\x07r\x01\x02\0\x000j\x01\x02\0\0.", 7),
        (b"\x80\x05\x95\x05\0\0\0\0\0\0\0\x8c\x01a\x940h\0.", "a"),
    ],
)
def test_rare_opcodes(data, value):
    assert load(data) == value
    if b"U" not in data:
        assert pickle.loads(data, encoding="latin-1") == value  # noqa: S301


def test_persistent_ids_are_the_formats_business():
    assert load(b"K\x05Q.", persistent=lambda key: ("id", key)) == ("id", 5)
    assert load(b"Pabc\n.", persistent=lambda key: ("id", key)) == ("id", "abc")
    with pytest.raises(CorruptFileError, match="a persistent id"):
        load(b"K\x05Q.")


def test_pickles_in_a_row():
    data = b"?" + pickle.dumps([1]) + pickle.dumps("two")
    first = Unpickler(data, CONTAINERS, position=1)
    assert first.load() == [1]
    assert Unpickler(data, CONTAINERS, position=first.position).load() == "two"


# ── objects ──────────────────────────────────────────────────────────────────────────────────────


class Thing:
    """What a checkpoint may have been saved with."""

    def __init__(self, size):
        self.size = size


class Options(dict):
    """A dictionary with a class."""


class Sequence(list):
    """A list with a class."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_recorded(protocol):
    thing, options, sequence = Thing(3), Options(a=1), Sequence([1, 2])
    options.more = 5
    found = load(pickle.dumps([thing, options, sequence, Thing], protocol))
    assert [type(item) for item in found] == [StubObject] * 3 + [Stub]
    assert found[0].function == found[3] == Stub(__name__, "Thing")
    assert found[0].state == {"size": 3}
    assert found[1].state == {"more": 5}
    if protocol >= 2:
        assert found[1].items == {"a": 1}
        assert found[2].elements == [1, 2]
    else:
        assert found[1].args == ({"a": 1},)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_harmless_classes_of_the_standard_library(protocol):
    harmless = [
        argparse.Namespace(lr=0.1),
        dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
        dt.timedelta(1),
        pathlib.PurePosixPath("a/b"),
        types.SimpleNamespace(a=1),
        collections.deque([1]),
        fractions.Fraction(1, 3),
    ]
    found = load(pickle.dumps(harmless, protocol))
    assert all(isinstance(item, StubObject) for item in found)
    assert found[0].state == {"lr": 0.1}


def test_the_table_decides_first():
    call = b"cos\nsystem\n(X\x02\0\0\0lstR."
    assert load(call, {"os.system": lambda text: text.upper()}) == "LS"
    assert load(call, {"os.system": None}).args == ("ls",)
    with pytest.raises(CorruptFileError, match="takes 0 positional arguments"):
        load(call, {"os.system": lambda: None})


def test_a_global_as_a_value_is_harmless():
    assert load(b"cos\nsystem\n.") == Stub("os", "system")
    assert str(load(b"\x8c\x02os\x8c\x06system\x93.")) == "os.system"


CANARY = "canary"
ARGUMENTS = b"(X\x0c\0\0\0touch canary"
WISHES = {
    "posix.system": b"cposix\nsystem\n" + ARGUMENTS + b"tR.",
    "os.system": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "nt.system": b"cnt\nsystem\n" + ARGUMENTS + b"tR.",
    "builtins.eval": b"cbuiltins\neval\n(X\x0d\0\0\0open('canary')tR.",
    "builtins.exec": b"(X\x01\0\0\0aibuiltins\nexec\n.",
    "__builtin__.eval": b"(c__builtin__\neval\nX\x01\0\0\0ao.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(ctorch\nload\nX\x01\0\0\0atR.",
    "builtins.__import__": b"cbuiltins\n__import__\n(X\x02\0\0\0ostR.",
    "builtins.print": b"cbuiltins\nprint\n)R.",
    "builtins.type": b"cbuiltins\ntype\n)\x81.",
    "subprocess.Popen": b"csubprocess\nPopen\n" + ARGUMENTS + b"t\x81.",
    "subprocess.run": b"csubprocess\nrun\n" + ARGUMENTS + b"t}\x92.",
    "runpy._run_code": b"crunpy\n_run_code\n)R.",
    "importlib.import_module": b"cimportlib\nimport_module\n)R.",
    "pickle.loads": b"cpickle\nloads\n)R.",
    "operator.attrgetter": b"coperator\nattrgetter\n)R.",
    "io.open": b"cio\nopen\n" + ARGUMENTS + b"tR.",
    "commands.getoutput": b"ccommands\ngetoutput\n)R.",
    "pip.main": b"cpip\nmain\n)R.",
    "torch.load": b"ctorch\nload\n)R.",
    "torch.hub.load": b"ctorch.hub\nload\n)R.",
    "numpy.testing._private.utils.runstring": b"cnumpy.testing._private.utils\nrunstring\n)R.",
    "torch.os.system": b"\x8c\x05torch\x8c\x09os.system\x93)R.",
    "torch.os._exit": b"\x8c\x05torch\x8c\x08os._exit\x93)R.",
    "thing.__call__": b"cthing\n__call__\n)R.",
    "the result of another call": b"cthing\nMaker\n)R)R.",
}


@pytest.mark.parametrize(("name", "data"), WISHES.items(), ids=WISHES)
def test_a_wish_to_run_something_is_refused(tmp_path, monkeypatch, name, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeContentError, match=f"asks to call {name} ") as caught:
        load(data)
    assert caught.value.offset is not None
    assert list(tmp_path.iterdir()) == []
    opcodes = [(at, code.name) for code, _, at in pickletools.genops(data)]
    at = caught.value.offset
    assert dict(opcodes)[at] in {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("os.environ", b"cos\nenviron\nX\x01\0\0\0aX\x01\0\0\0bs."),
        ("os.environ", b"cos\nenviron\n(X\x01\0\0\0aX\x01\0\0\0bu."),
        ("sys.path", b"csys\npath\nX\x01\0\0\0aa."),
        ("sys.path", b"csys\npath\n(X\x01\0\0\0ae."),
        ("sys.path", b"csys\npath\n(X\x01\0\0\0a\x90."),
        ("torch.nn.Module", b"ctorch\nnn.Module\n}b."),
    ],
)
def test_a_wish_to_change_a_global_is_refused(name, data):
    with pytest.raises(UnsafeContentError, match=f"asks to change {name} "):
        load(data)


def test_nothing_is_imported():
    with pytest.raises(UnsafeContentError, match="antigravity"):
        load(b"cantigravity\nfly\n)R.")
    load(b"cthis\ns\n.")
    import sys

    assert {"antigravity", "this"}.isdisjoint(sys.modules)


# ── broken and hostile pickles ───────────────────────────────────────────────────────────────────

BROKEN = {
    "empty": (b"", "ends early"),
    "no stop": (b"K\x01", "ends early"),
    "nothing to stop with": (b".", "is broken: IndexError"),
    "half a number": (b"J\x01\x02", "ends early"),
    "text longer than the file": (b"X\xff\xff\xff\xff1234", "ends early"),
    "bytes longer than the file": (b"\x8e" + b"\xff" * 7 + b"\x7f", "ends early"),
    "negative size": (b"T\xff\xff\xff\xff.", "negative size"),
    "line without an end": (b"cos", "does not end"),
    "text that is not UTF-8": (b"X\x01\0\0\0\xff.", "UnicodeDecodeError"),
    "no such memo": (b"h\x01.", "KeyError"),
    "a number of the memo that was left out": (b"Nq\x05h\x02.", "KeyError: 2"),
    "a negative number of the memo": (b"Np-1\n.", "a negative number"),
    "a negative number got from the memo": (b"Np0\ng-1\n.", "KeyError: -1"),
    "unknown opcode": (b"\xff.", "KeyError"),
    "extension registry": (b"\x82\x01.", "KeyError"),
    "out-of-band buffer": (b"\x97.", "KeyError"),
    "pop of nothing": (b"0.", "IndexError"),
    "tuple of nothing": (b"\x87.", "IndexError"),
    "mark missing": (b"K\x01t.", "IndexError"),
    "list as a key": (b"}]Ns.", "not a key"),
    "list inside a key": (b"}]\x85Ns.", "not a key"),
    "set as a key": (b"}\x8fNs.", "not a key"),
    "odd number of items": (b"}(Nu.", "has none"),
    "items of a list": (b"](NNu.", "has none"),
    "elements of a dictionary": (b"}(NNe.", "has none"),
    "state of a list": (b"]}b.", "AttributeError"),
    "arguments that are a list": (b"cthing\nT\n]R.", "not a tuple"),
    "call of text": (b"X\x01\0\0\0a]R.", "not a tuple"),
    "global named by a number": (b"K\x01K\x02\x93.", "not text"),
    "quotes": (b"S'abc\n.", "without quotes"),
    "set of lists": (b"cbuiltins\nset\n(]]atR.", "not a key"),
    "bytes from a number": (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "from something else"),
    "strange encoding": (
        b"c_codecs\nencode\n(X\x01\0\0\0aX\x06\0\0\0base64tR.",
        "from something else",
    ),
    "bad number": (b"Ione\n.", "ValueError"),
    "complex of too many": (b"cbuiltins\ncomplex\n(K\x01K\x02K\x03tR.", "TypeError"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_pickle_is_an_error_with_its_place(data, message):
    with pytest.raises(CorruptFileError, match=message) as caught:
        load(data)
    assert caught.value.offset is not None


def test_a_newer_protocol_is_unsupported():
    with pytest.raises(UnsupportedError, match="protocol 6"):
        load(b"\x80\x06N.")


def doubled(make, times):
    """A value that contains the one before twice."""
    return b"K\x01" + (b"2" + make) * times


HOSTILE = {
    "long": (b"\x8b\xff\xff\xff\x7f" + bytes(100), "1024 bytes in an integer"),
    "digits": (b"L" + b"9" * 5000 + b"L\n.", "4096 digits"),
    "marks": (b"(" * 500_000, "1000 marks"),
    "memo": (b"N" + b"\x94" * 2_000_001 + b".", "2000000 remembered values"),
    "far in the memo": (b"Nr\xff\xff\xff\x7f.", "2000000 remembered values"),
    "odd keys": (
        b"}("
        + b"".join(
            b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N"
            for k in range(1, 11_000)
        )
        + b"u.",
        "10000 keys",
    ),
    "copies": (
        b"(" + b"N" * 100_000 + b"l\x94\x85\x940" + b"cbuiltins\nlist\nh\x01R" * 100 + b".",
        "a few copies of itself",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_limits(data, message):
    start = time.process_time()
    with pytest.raises(LimitError, match=message):
        load(data)
    assert time.process_time() - start < 5


def test_opcodes_are_limited(monkeypatch):
    monkeypatch.setattr(_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(LimitError, match="1000 opcodes"):
        load(b"N0" * 500 + b"N.")
    load(b"N0" * 499 + b"N.")


def test_a_key_that_takes_forever_to_hash_is_refused():
    with pytest.raises(CorruptFileError, match="not a key"):
        load(b"}" + doubled(b"\x86", 60) + b"Ns.")


def test_deep_values_do_not_overflow_a_stack():
    for nest in (b"]" * 300_000 + b"a" * 299_999, b")" + b"\x85" * 300_000):
        found = load(nest + b".")
        depth = 0
        while found:
            found, depth = found[0], depth + 1
        assert depth >= 299_999
    with pytest.raises(CorruptFileError, match="not a key"):
        load(b"})" + b"\x85" * 300_000 + b"Ns.")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_of_ours_or_a_value(data):
    whole = pickle.dumps(
        {"a": [1, 2.5, "x", b"y"], ("k", 1): {Thing(1), 5}}, data.draw(st.sampled_from(PROTOCOLS))
    )
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ConverterError):
        load(bytes(broken[: data.draw(st.integers(0, len(broken)))]))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters())
        | st.booleans()
        | st.integers(-(1 << 100), 1 << 100)
        | st.lists(st.integers(0, 1 << 80), max_size=6).map(tuple)
    )
)
def test_python_reads_what_we_write(items):
    pickler = Pickler()
    pickler.name("collections", "OrderedDict")
    pickler.opcodes(b")R0]")
    for item in items:
        pickler.value(item)
        pickler.name("collections", "OrderedDict")
        pickler.opcodes(b"\x86a")
    data = pickler.finish()
    pickletools.dis(data, io.StringIO())
    found = pickle.loads(data)  # noqa: S301
    assert found == [(item, collections.OrderedDict) for item in items]
    assert load(data) == [(item, Stub("collections", "OrderedDict")) for item in items]
    assert data.count(b"OrderedDict") == 1 + str(items).count("OrderedDict")
