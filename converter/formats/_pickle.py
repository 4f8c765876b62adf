r"""A pickle interpreter that builds data and can do nothing else, and the few opcodes we write.

https://github.com/python/cpython/blob/main/Lib/pickletools.py (the opcodes, protocols 0 to 5)

    80 02                          PROTO 2
    c torch._utils\n_rebuild…\n    GLOBAL: push a `Stub`, a name and nothing more
    (                              MARK
    X 01 00 00 00 'w'  K 03        BINUNICODE, BININT1: push values
    q 07 … h 07                    BINPUT, BINGET: the memo
    t  ] a  } s u  )               tuples, lists, dictionaries from the stack
    Q                              BINPERSID: the format says what a persistent id stands for
    R                              REDUCE: "call this global with this tuple"
    .                              STOP

Nothing is imported and nothing that a pickle names is ever called.  A *call* (REDUCE, INST, OBJ,
NEWOBJ, NEWOBJ_EX) of a global does one of three things:

1. The global is in the table: the table's function makes a description from the arguments.
2. The global looks like data: the wish is recorded as an inert `StubObject`.  That is so for
   `INERT`, a few classes of Python's standard library, and for a global from elsewhere that is
   called by NEWOBJ, has a class's name (`Namespace`) or a private helper's (`_rebuild_thing`).
3. Everything else (`os.system`, `builtins.eval`, `pip.main`, the result of another call) raises
   `UnsafeContentError` with the name and the place.  So does changing a global itself (items or
   attributes set on `os.environ`, `sys.path`, a class).

A global that merely stands somewhere as a value is a `Stub`, and harmless.
"""

from __future__ import annotations

import codecs
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from types import MappingProxyType
from typing import Any

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    UnsafeContentError,
    UnsupportedError,
)

MAX_OPCODES = 10_000_000
MAX_DEPTH = 1_000  # of marks inside marks
MAX_MEMO = 2_000_000
MAX_LINE = 1 << 20  # bytes of an argument in text
MAX_INTEGER = 1024  # bytes
MAX_DIGITS = 4096
MAX_KEY = 1_000  # values inside one key, and odd keys given to one constructor
MAX_ODD_KEYS = 10_000  # see `_is_odd`
SPARE_COPIES = 100_000  # see `Unpickler._charge`


@dataclass(frozen=True, slots=True)
class Stub:
    """A global that the pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class StubObject:
    """What a call would have made: the global, its arguments, and what was put in afterwards."""

    function: Stub
    args: tuple[Any, ...]
    state: Any = None
    elements: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)

    def build(self, state: Any) -> None:
        """Take the state of BUILD.  Every description that may get one has this method."""
        self.state = state


class EndsEarlyError(CorruptFileError):
    """The pickle goes on after the bytes that there are."""


Table = Mapping[str, Callable[..., Any] | None]  # by "module.name"; None: record the call

_INERT = """
argparse.Namespace __builtin__.object builtins.object collections.deque
datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
decimal.Decimal fractions.Fraction functools.partial logging.getLogger
pathlib.Path pathlib.PosixPath pathlib.WindowsPath
pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath
pathlib._local.PurePath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
types.SimpleNamespace uuid.UUID
"""
INERT = frozenset(_INERT.split())
_STANDARD = sys.stdlib_module_names | {"__builtin__", "commands", "distutils", "imp", "popen2"}


def _looks_like_data(function: Stub, *, new: bool) -> bool:
    """Rule 2 of the module's docstring."""
    if function.module.partition(".")[0] in _STANDARD:
        return str(function) in INERT
    *outer, last = function.name.split(".")
    if not all(_is_class_name(part) for part in outer):
        return False  # `numpy:os.system` is not numpy's
    private = last.startswith("_") and not last.endswith("__")
    return new or private or _is_class_name(last)


def _is_class_name(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


# ── containers ───────────────────────────────────────────────────────────────────────────────────


def _is_odd(key: Any) -> bool:
    """Whether a key's hash is not random, so that an attacker could make many collide.

    Raises `ValueError` for what cannot be a key, or takes long to hash.
    """
    if isinstance(key, tuple | frozenset):
        todo = [key]
        seen = 0
        while todo:
            value = todo.pop()
            seen += 1
            if seen > MAX_KEY or isinstance(value, list | dict | set):
                raise ValueError("not a key of a dictionary")
            if isinstance(value, tuple | frozenset):
                todo += list(value)[:MAX_KEY]
        return True
    if isinstance(key, list | dict | set):
        raise ValueError("not a key of a dictionary")  # noqa: TRY004 - of the file, not of ours
    if isinstance(key, int):
        return key.bit_length() > 32  # noqa: PLR2004 - small ones spread over any table
    return isinstance(key, float | complex)


def _checked(keys: Iterable[Any], limit: int = MAX_KEY) -> None:
    if sum(map(_is_odd, keys)) > limit:
        raise ValueError("too many odd keys")


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    pairs = list(pairs.items() if isinstance(pairs, dict) else pairs)
    _checked(key for key, _ in pairs)
    return dict(pairs)


def _set(keys: Any = ()) -> set[Any]:
    _checked(keys)
    return set(keys)


def _bytes(value: Any = b"", encoding: str = "latin1") -> bytes:
    """How protocol 2 says bytes: as text in latin-1."""
    if isinstance(value, str) and encoding in {"latin1", "latin-1", "utf-8", "utf8", "ascii"}:
        return value.encode(encoding)
    if not isinstance(value, bytes):
        raise TypeError("bytes from something else")
    return value


def _reconstructed(cls: Stub, _base: Stub, state: Any = None) -> StubObject:
    """How protocols 0 and 1 make an object without calling its class."""
    return StubObject(cls, (state,))


_BUILTINS: Table = {
    "bytearray": _bytes,
    "bytes": _bytes,
    "complex": complex,
    "dict": _dict,
    "frozenset": lambda keys=(): frozenset(_set(keys)),
    "list": lambda values=(): list(values),
    "range": lambda *args: ("range", *args),
    "set": _set,
    "slice": lambda *args: ("slice", *args),
    "tuple": lambda values=(): tuple(values),
    "xrange": lambda *args: ("range", *args),
}

CONTAINERS: Table = MappingProxyType(
    {
        "_codecs.encode": _bytes,
        "collections.Counter": _dict,
        "collections.OrderedDict": _dict,
        "collections.defaultdict": lambda _factory=None, pairs=(): _dict(pairs),
        "copy_reg._reconstructor": _reconstructed,
        "copyreg._reconstructor": _reconstructed,
        **{f"__builtin__.{name}": make for name, make in _BUILTINS.items()},
        **{f"builtins.{name}": make for name, make in _BUILTINS.items()},
    }
)
"""Constructors of plain containers: the least that a format's table has."""


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


class Unpickler:
    """Interprets one pickle in `data` from `position` on; afterwards `position` is its end.

    `persistent` says what a persistent id stands for; `where` names the pickle in messages.
    """

    def __init__(
        self,
        data: bytes,
        table: Table,
        persistent: Callable[[Any], Any] | None = None,
        *,
        position: int = 0,
        where: str = "the pickle",
    ) -> None:
        self.data = data
        self.position = position
        self.stack: list[Any] = []
        self.memo: list[Any] = []  # picklers number what they remember from 0 on, or from 1
        self.gaps = 0  # numbers in it that were left out
        self.persistent = persistent or _no_persistent
        self._table = table
        self._makers: dict[int, Callable[..., Any]] = {}  # by the id of a stub: all stubs live on
        self._where = where
        self._opcode = position  # where the current opcode starts
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._stubs: dict[tuple[str, str], Stub] = {}
        self._odd_keys = 0
        self._copies = 4 * len(data) + SPARE_COPIES

    def load(self) -> Any:
        """The value that the pickle describes.

        Raises `CorruptFileError`, `LimitError` or `UnsafeContentError`, with the byte offset.
        """
        try:
            return self._run()
        except _BROKEN as error:
            if self.position >= len(self.data) and self.data[self._opcode :] != b".":
                raise self.short() from error
            raise CorruptFileError(
                f"{self._where} is broken: {type(error).__name__}: {str(error)[:200]}",
                offset=self._opcode,
            ) from error
        except ConverterError as error:
            error.offset = self._opcode if error.offset is None else error.offset
            raise

    def _run(self) -> Any:  # noqa: C901, PLR0912, PLR0915 - calls would double the time of the loop
        """Run opcodes until the last.

        The ones of which a tensor has many are done here, where nothing is wrong with them.
        """
        data, memo, stack, outer = self.data, self.memo, self.stack, self._outer
        nbytes, natural = len(data), int.from_bytes
        at = self.position
        left = MAX_OPCODES
        whole = isinstance(data, bytes)  # joblib reads piece by piece
        try:
            while True:
                left -= 1
                if left < 0:
                    break
                code = data[at]
                if (
                    code == _LONG_BINPUT
                    and natural(data[at + 1 : at + 5], "little") == len(memo) < MAX_MEMO
                ):
                    memo.append(stack[-1])
                    at += 5  # beyond the end, the next opcode is missing
                elif code == _BININT1:
                    stack.append(data[at + 1])
                    at += 2
                elif (
                    code == _BINGET
                    and (number := data[at + 1]) < len(memo)
                    and (value := memo[number]) is not _NOTHING
                ):
                    stack.append(value)
                    at += 2
                elif (
                    code == _MARK
                    and whole
                    and (match := _TENSOR.match(data, at))
                    and (done := self._tensors(match, stack, left))
                ):
                    at, left = done
                elif code == _MARK and len(outer) < MAX_DEPTH:
                    outer.append(stack)
                    stack = []
                    at += 1
                elif code == _TUPLE:
                    value = tuple(stack)
                    stack = outer.pop()
                    stack.append(value)
                    at += 1
                elif code == _TUPLE2:
                    value = stack.pop()
                    stack[-1] = (stack[-1], value)
                    at += 1
                elif (
                    code == _BINUNICODE
                    and (stop := at + 5 + natural(data[at + 1 : at + 5], "little")) <= nbytes
                ):
                    stack.append(str(data[at + 5 : stop], "utf-8", "surrogatepass"))
                    at = stop
                elif code == _BININT2:
                    stack.append(natural(data[at + 1 : at + 3], "little"))
                    at += 3
                elif code == _STOP:
                    self.position = at + 1
                    return stack.pop()
                else:
                    self._opcode, self.position, self.stack = at, at + 1, stack
                    _HANDLERS[code](self)
                    at, stack = self.position, self.stack
        except BaseException:
            self._opcode, self.position = at, max(self.position, at + 1)
            raise
        self._opcode = at
        raise self.limit(f"{MAX_OPCODES} opcodes")

    def _tensors(
        self, first: re.Match[bytes], stack: list[Any], left: int
    ) -> tuple[int, int] | None:
        """Do at once what the opcodes of a tensor do, and of those that follow under their names.

        Returns where the next opcode is, and how many are left then; None when nothing was done.
        """
        data, match, name, done = self.data, first, b"", None
        while opcodes := self._tensor(match, stack, left, name):
            at, left = done = match.end(), left - opcodes
            start = at + 5
            stop = start + int.from_bytes(data[at + 1 : start], "little")
            following = _TENSOR.match(data, stop)
            if data[at : at + 1] != b"X" or following is None or following[2] is None:
                break
            match, name = following, data[start:stop]
        return done

    def _tensor(self, match: re.Match[bytes], stack: list[Any], left: int, called: bytes) -> int:
        """Do at once what the opcodes of a match of `_TENSOR` do; how many more than one they are.

        One that begins with what makes it is `called` so, which is done, too.  0 where they are
        more than are `left`, or where anything is unusual or wrong: nothing was done then, and one
        by one they do it, or say what is wrong.
        """
        put0, maker, kind, cls, length, key, put1, device, numel, put2, offset, *rest = (
            match.groups()
        )
        size, put3, stride, put4, gradient, hooks, put5, put6, put7 = rest
        puts = (put0, put1, put2, put3, put4, put5, put6, put7)
        count = self._numbered(puts) if any(puts) else 0
        (size, size_opcodes), (stride, stride_opcodes) = _naturals(size), _naturals(stride)
        opcodes = (18 if maker else 15) + size_opcodes + stride_opcodes + count
        copies = self._copies - len(size) - len(stride)
        outer, memo, makers = self._outer, self.memo, self._makers
        fits = opcodes <= left and copies >= 0 and len(outer) + 2 <= MAX_DEPTH
        if count < 0 or not fits or self.gaps or len(key) != length[0]:
            return 0
        try:
            name = key.decode()
            kind = memo[kind[0]] if kind else "storage"
            device = memo[device[0]] if device else "cpu"
            identity = (kind, memo[cls[0]], name, device, int.from_bytes(numel[1:], "little"))
            storage = self.persistent(identity)
            if makers[id(memo[hooks[0]])] is not _dict or type(storage) in _SIZED:
                return 0
            made: dict[Any, Any] = {}
            start = int.from_bytes(offset[1:], "little")
            args = (storage, start, size, stride, gradient == b"\x88", made)
            title = str(called, "utf-8", "surrogatepass")
            tensor = makers[id(memo[maker[0]] if maker else stack[-1])](*args)
        except (ConverterError, *_BROKEN):
            return 0
        self._copies = copies
        if maker:
            stack += (title, tensor)
        else:
            stack[-1] = tensor
        if count:
            memo += compress((title, name, identity, size, stride, made, args, tensor), puts)
        return opcodes

    def _numbered(self, puts: tuple[bytes | None, ...]) -> int:
        """How many values these numbers remember, if they go on where the memo ends; else -1."""
        numbers = b"".join(filter(None, puts))
        known, count = len(self.memo), len(numbers) // 4
        as_due = numbers == _PUTS[count].pack(*range(known, known + count))
        return count if as_due and known + count <= MAX_MEMO else -1

    # What opcodes are made of.

    def take(self, nbytes: int) -> bytes:
        """The next bytes of the pickle."""
        stop = self.position + nbytes
        data = self.data[self.position : stop]
        if len(data) != nbytes:
            raise self.short()
        self.position = stop
        return data

    def line(self) -> bytes:
        """The next bytes up to a line feed."""
        stop = self.data.find(b"\n", self.position, self.position + MAX_LINE)
        if stop < 0:
            raise CorruptFileError(f"a line of {self._where} does not end", offset=self._opcode)
        return self.take(stop + 1 - self.position)[:-1]

    def natural(self, nbytes: int) -> int:
        """The next number, unsigned."""
        return int.from_bytes(self.take(nbytes), "little")

    def unpack(self, layout: struct.Struct) -> Any:
        """The next number of another kind."""
        (value,) = layout.unpack(self.take(layout.size))
        return value

    def mark(self) -> None:
        """Start a new stack on top of the current one."""
        if len(self._outer) >= MAX_DEPTH:
            raise self.limit(f"{MAX_DEPTH} marks inside each other")
        self._outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """End the topmost stack; what was on it."""
        top, self.stack = self.stack, self._outer.pop()
        return top

    def put(self, number: int) -> None:
        """Remember the top of the stack."""
        if number >= MAX_MEMO:
            raise self.limit(f"{MAX_MEMO} remembered values")
        if number < 0:
            raise ValueError("a negative number of what is remembered")
        missing = number - len(self.memo)
        if missing >= 0:
            self.gaps += missing
            self.memo += [_NOTHING] * (missing + 1)
        elif self.memo[number] is _NOTHING:
            self.gaps -= 1
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        """Push what was remembered under a number."""
        value = self.memo[number] if 0 <= number < len(self.memo) else _NOTHING
        if value is _NOTHING:
            raise KeyError(number)
        self.stack.append(value)

    def stub(self, module: Any, name: Any) -> Stub:
        """The one `Stub` of this global."""
        if isinstance(module, bytes) and isinstance(name, bytes):
            module, name = module.decode(), name.decode()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("the name of a global is not text")
        return self._stubs.setdefault((module, name), Stub(module, name))

    def call(self, function: Any, args: Any, *, new: bool = False) -> Any:
        """What a call of a global stands for; see the docstring of the module."""
        if not isinstance(args, tuple):
            raise TypeError("arguments that are not a tuple")
        make = self._makers.get(id(function))
        if make is None:
            if not isinstance(function, Stub):
                raise self.unsafe("call", function)
            make = self._table.get(str(function))
            if make is None:
                if str(function) in self._table or _looks_like_data(function, new=new):
                    return StubObject(function, args)
                raise self.unsafe("call", function)
            self._makers[id(function)] = make
        self._charge(args)
        return make(*args)

    def set_items(self, target: Any, flat: list[Any]) -> None:
        """Put keys and values, alternating, into a dictionary or an object."""
        if isinstance(target, Stub):
            raise self.unsafe("change", target)
        items = target.items if isinstance(target, StubObject) else target
        if not isinstance(items, dict) or len(flat) % 2:
            raise TypeError("items of something that has none")
        self._count_odd(flat[::2])
        items.update(zip(flat[::2], flat[1::2], strict=True))

    def extend(self, target: Any, values: list[Any]) -> None:
        """Put values into a list, a set or an object."""
        if isinstance(target, Stub):
            raise self.unsafe("change", target)
        if isinstance(target, set):
            self._count_odd(values)
            target.update(values)
        elif isinstance(target, list | StubObject):
            (target if isinstance(target, list) else target.elements).extend(values)
        else:
            raise TypeError("elements of something that has none")

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state; a dictionary's (`_metadata` of a state dict) is not needed."""
        if isinstance(target, Stub):
            raise self.unsafe("change", target)
        if not isinstance(target, dict):
            target.build(state)

    def frozen(self, values: list[Any]) -> frozenset[Any]:
        """A frozenset of checked values."""
        self._count_odd(values)
        return frozenset(values)

    def short(self) -> EndsEarlyError:
        """The error for a pickle that ends too early."""
        return EndsEarlyError(f"{self._where} ends early", offset=self._opcode)

    def limit(self, what: str) -> LimitError:
        """The error for a pickle that is too large in some way."""
        return LimitError(f"{self._where} has more than {what}", offset=self._opcode)

    def unsafe(self, verb: str, function: Any) -> UnsafeContentError:
        """The error for a wish that is rule 3's."""
        name = str(function) if isinstance(function, Stub) else "the result of another call"
        return UnsafeContentError(
            f"{self._where} asks to {verb} {name[:200]}",
            offset=self._opcode,
            hint="nothing was run; do not load this file with anything that runs pickles",
        )

    def _count_odd(self, keys: Iterable[Any]) -> None:
        self._odd_keys += sum(_is_odd(key) for key in keys if type(key) is not str)
        if self._odd_keys > MAX_ODD_KEYS:
            raise self.limit(f"{MAX_ODD_KEYS} keys that are neither text nor small integers")

    def _charge(self, args: tuple[Any, ...]) -> None:
        """Constructors copy their arguments: few opcodes must not make many large copies."""
        for value in args:
            if type(value) in _SIZED:
                self._copies -= len(value)
        if self._copies < 0:
            raise self.limit("a few copies of itself")


Opcode = Callable[[Unpickler], Any]

_LONG_BINPUT, _BINGET, _BININT1, _BININT2, _BINUNICODE = b"rhKMX"
_MARK, _TUPLE, _TUPLE2, _STOP = b"(t\x86."
_NOTHING: Any = object()  # under numbers that were left out
_SIZED = frozenset({list, tuple, dict, set, frozenset, str, bytes})
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")


# An empty stack, an unknown opcode or memo, text that is not UTF-8, a list as a key.
_BROKEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


# What torch writes for each tensor, `Unpickler._tensor` does at once.

_NATURAL = rb"(?:K.|M..|J...[\0-\x7f])"
_PARTS = {
    b"put": rb"(?:r(....))?",
    b"natural": b"(%b)" % _NATURAL,
    b"naturals": rb"(\)|N\x85|NN\x86|NNN\x87|\(N{4,32}t)".replace(b"N", _NATURAL),
}
_TENSOR = re.compile(
    rb"""
    (?: %(put)b h(.) )?                                  # what makes it, behind a name
    \( \( (?: h(.) | X\x07\0\0\0storage ) h(.)           # the kind and the class of a storage
    X (.)\0\0\0 ([0-9]{1,20}) %(put)b                    # its key
    (?: h(.) | X\x03\0\0\0cpu ) %(natural)b t %(put)b Q  # its device and number of elements
    %(natural)b %(naturals)b %(put)b %(naturals)b %(put)b  # offset, size, stride
    ([\x88\x89]) h(.) \) R %(put)b t %(put)b R %(put)b  # gradient, no hooks; the call
    """
    % _PARTS,
    re.DOTALL | re.VERBOSE,
)
_PUTS = [struct.Struct(f"<{count}I") for count in range(9)]


@lru_cache(4096)
def _naturals(data: bytes) -> tuple[tuple[int, ...], int]:
    """The tuple that some opcodes make, and how many they are; most tensors share a few."""
    found = re.findall(_NATURAL, data, re.DOTALL)
    values = tuple(int.from_bytes(opcode[1:], "little") for opcode in found)
    return values, len(values) + 1 + data.startswith(b"(")


# The opcodes of which a tensor has many.


def _constant(value: Any) -> Opcode:
    def run(machine: Unpickler) -> None:
        machine.stack.append(value)

    return run


def _text(nbytes: int) -> Opcode:
    def run(machine: Unpickler) -> None:
        start = machine.position + nbytes
        stop = start + int.from_bytes(machine.data[machine.position : start], "little")
        if stop > len(machine.data):
            raise machine.short()
        machine.stack.append(str(machine.data[start:stop], "utf-8", "surrogatepass"))
        machine.position = stop

    return run


def _tuple_of(size: int) -> Opcode:
    def run(machine: Unpickler) -> None:
        if len(machine.stack) < size:
            raise IndexError("pop from an empty stack")
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return run


def _tuple(machine: Unpickler) -> None:
    made = tuple(machine.pop_mark())
    machine.stack.append(made)


def _reduce(machine: Unpickler) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.call(function, args))


# The others.


def _push(make: Opcode) -> Opcode:
    def run(machine: Unpickler) -> None:
        value = make(machine)  # which may change what the stack is
        machine.stack.append(value)

    return run


def _bytes_of(nbytes: int, decode: Callable[[bytes], Any] = bytes) -> Opcode:
    return _push(lambda machine: decode(machine.take(machine.natural(nbytes))))


def _size(machine: Unpickler) -> int:
    size: int = machine.unpack(_I32)
    if size < 0:
        raise ValueError("a negative size")
    return size


def _old_text(data: bytes) -> str | bytes:
    """A string of Python 2, which may be either."""
    return data.decode() if data.isascii() else data


def _quoted(machine: Unpickler) -> str | bytes:
    line = machine.line()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:  # noqa: PLR2004
        raise ValueError("a string without quotes")
    data, _ = codecs.escape_decode(line[1:-1])
    return _old_text(data)


def _long(machine: Unpickler, size: int) -> int:
    if size > MAX_INTEGER:
        raise machine.limit(f"{MAX_INTEGER} bytes in an integer")
    return int.from_bytes(machine.take(size), "little", signed=True)


def _line_integer(machine: Unpickler) -> int:
    text = machine.line()
    if len(text) > MAX_DIGITS:
        raise machine.limit(f"{MAX_DIGITS} digits in an integer")
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.rstrip(b"L"))


def _protocol(machine: Unpickler) -> None:
    protocol = machine.natural(1)
    if protocol > 5:  # noqa: PLR2004
        raise UnsupportedError(f"pickle protocol {protocol}", offset=machine.position)


def _pop(machine: Unpickler) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _dictionary(machine: Unpickler) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    machine.set_items(made, machine.pop_mark())
    return made


def _set_item(machine: Unpickler) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: Unpickler) -> None:
    flat = machine.pop_mark()
    machine.set_items(machine.stack[-1], flat)


def _append(machine: Unpickler) -> None:
    value = machine.stack.pop()
    machine.extend(machine.stack[-1], [value])


def _extend(machine: Unpickler) -> None:
    values = machine.pop_mark()
    machine.extend(machine.stack[-1], values)


def _build(machine: Unpickler) -> None:
    state = machine.stack.pop()
    machine.build(machine.stack[-1], state)


def _no_persistent(_key: Any) -> Any:
    raise ValueError("a persistent id")


def _persistent_id(machine: Unpickler) -> None:
    machine.stack[-1] = machine.persistent(machine.stack[-1])


def _stack_global(machine: Unpickler) -> Stub:
    name, module = machine.stack.pop(), machine.stack.pop()
    return machine.stub(module, name)


def _new_object(machine: Unpickler) -> Any:
    args, function = machine.stack.pop(), machine.stack.pop()
    return machine.call(function, args, new=True)


def _new_object_ex(machine: Unpickler) -> Any:
    keywords, args, function = (machine.stack.pop() for _ in range(3))
    return machine.call(function, (*args, keywords) if keywords else args, new=True)


def _instance(machine: Unpickler) -> Any:
    function = machine.stub(machine.line(), machine.line())
    return machine.call(function, tuple(machine.pop_mark()))


def _object(machine: Unpickler) -> Any:
    function, *args = machine.pop_mark()
    return machine.call(function, tuple(args))


_OPCODES: Mapping[bytes, Opcode] = {  # but for K, M, \x86 and ., which `Unpickler._run` does
    # constants and numbers
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _push(_line_integer),
    b"L": _push(_line_integer),
    b"F": _push(lambda machine: float(machine.line())),
    b"J": _push(lambda machine: machine.unpack(_I32)),
    b"G": _push(lambda machine: machine.unpack(_F64)),
    b"\x8a": _push(lambda machine: _long(machine, machine.natural(1))),
    b"\x8b": _push(lambda machine: _long(machine, _size(machine))),
    # text and bytes
    b"S": _push(_quoted),
    b"T": _push(lambda machine: _old_text(machine.take(_size(machine)))),
    b"U": _bytes_of(1, _old_text),
    b"V": _push(lambda machine: machine.line().decode("raw-unicode-escape")),
    b"X": _text(4),
    b"\x8c": _text(1),
    b"\x8d": _text(8),
    b"B": _bytes_of(4),
    b"C": _bytes_of(1),
    b"\x8e": _bytes_of(8),
    b"\x96": _bytes_of(8),
    # containers
    b")": _constant(()),
    b"]": _push(lambda _: []),
    b"}": _push(lambda _: {}),
    b"\x8f": _push(lambda _: set()),
    b"t": _tuple,
    b"l": _push(lambda machine: machine.pop_mark()),
    b"d": _push(_dictionary),
    b"\x91": _push(lambda machine: machine.frozen(machine.pop_mark())),
    b"\x85": _tuple_of(1),
    b"\x87": _tuple_of(3),
    b"a": _append,
    b"e": _extend,
    b"\x90": _extend,
    b"s": _set_item,
    b"u": _set_items,
    # the stack and the memo
    b"(": Unpickler.mark,
    b"0": _pop,
    b"1": Unpickler.pop_mark,
    b"2": _push(lambda machine: machine.stack[-1]),
    b"p": lambda machine: machine.put(int(machine.line())),
    b"q": lambda machine: machine.put(machine.natural(1)),
    b"r": lambda machine: machine.put(machine.natural(4)),
    b"\x94": lambda machine: machine.put(len(machine.memo) - machine.gaps),
    b"g": lambda machine: machine.get(int(machine.line())),
    b"h": lambda machine: machine.get(machine.natural(1)),
    b"j": lambda machine: machine.get(machine.natural(4)),
    # globals and objects
    b"c": _push(lambda machine: machine.stub(machine.line(), machine.line())),
    b"\x93": _push(_stack_global),
    b"R": _reduce,
    b"\x81": _push(_new_object),
    b"\x92": _push(_new_object_ex),
    b"i": _push(_instance),
    b"o": _push(_object),
    b"b": _build,
    b"P": _push(lambda machine: machine.persistent(machine.line().decode())),
    b"Q": _persistent_id,
    # framing
    b"\x80": _protocol,
    b"\x95": lambda machine: machine.take(8),
}


def _unknown(machine: Unpickler) -> None:
    raise KeyError(machine.data[machine.position - 1 : machine.position])


_HANDLERS = [_OPCODES.get(bytes([code]), _unknown) for code in range(256)]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


class Pickler:
    """Writes protocol 2 with the opcodes that `torch.load(weights_only=True)` accepts."""

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._globals: dict[str, int] = {}

    def opcodes(self, data: bytes) -> None:
        """Opcodes that have no argument, as they are."""
        self._parts.append(data)

    def value(self, value: str | bool | int | tuple[int, ...]) -> None:
        """Text, a truth value, an integer or a tuple of integers."""
        if isinstance(value, str):
            data = value.encode("utf-8", "surrogatepass")
            self._parts += [b"X", struct.pack("<I", len(data)), data]
        elif isinstance(value, bool):
            self._parts.append(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            self._parts.append(_integer(value))
        else:
            short = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value))
            self._parts.append(b"" if short else b"(")
            self._parts += map(_integer, value)
            self._parts.append(short or b"t")

    def name(self, module: str, name: str) -> None:
        """A global; from the second time on, as a reference to the memo."""
        known = self._globals.get(f"{module}.{name}")
        if known is not None:
            self._parts += [b"h", bytes([known])]
            return
        number = self._globals.setdefault(f"{module}.{name}", len(self._globals))
        self._parts += [f"c{module}\n{name}\n".encode(), b"q", bytes([number])]

    def finish(self) -> bytes:
        """End the pickle; all of its bytes."""
        return b"".join([*self._parts, b"."])


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return struct.pack("<cB", b"K", value)
    if 0 <= value < 1 << 16:
        return struct.pack("<cH", b"M", value)
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack("<ci", b"J", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return struct.pack("<cB", b"\x8a", len(data)) + data
