"""Records: frozen values that are read from what a person wrote, field by field.

What is right by its types is read in microseconds.  All that is not plainly right is left to
pydantic, which judges it, and says what is wrong: its import alone takes longer than to read and
plan a mapping.  So there is one definition of what is right, and nobody who writes it right waits.

    class Span(Record):
        start: Annotated[int, AtLeast(0)] = field(about="the first of them")
        stop: int | None = field(default=None, key="to", about="the first that is not")

    Span.read({"start": 1, "to": 4})
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    dataclass_transform,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

_MISSING: Any = object()
R = TypeVar("R", bound="Record")


class Refused(ValueError):  # noqa: N818 - it reads as a sentence
    """What was read is wrong: `details` are pydantic's, one a finding."""

    def __init__(self, text: str, details: list[dict[str, Any]]) -> None:
        super().__init__(text)
        self.details = details


class FieldError(ValueError):
    """A field does not go with the others; `field` is its key."""

    def __init__(self, text: str, field: str) -> None:
        super().__init__(text)
        self.field = field


class Field(NamedTuple):
    """A field: the key that it is written as, what stands for it when it is left out, a phrase."""

    key: str
    default: Any
    default_factory: Callable[[], Any] | None
    about: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is _MISSING and self.default_factory is None

    def value(self) -> Any:
        """What stands for it when it is left out."""
        return self.default_factory() if self.default_factory else self.default


def field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    key: str = "",
    about: str = "",
) -> Any:
    """Say more of a field than its type and its default; `key` is how it is written in a file."""
    return Field(key, default, default_factory, about)


class Check(NamedTuple):
    """In `Annotated`: a function of the value, which returns it or raises ValueError."""

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.function, handler(source))


class Before(NamedTuple):
    """In `Annotated`: the same, of what stands there before its type is looked at."""

    function: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.function, handler(source))


class AtLeast(NamedTuple):
    """In `Annotated`: the least that a number may be."""

    least: int

    def function(self, value: Any) -> Any:
        """The value, unless it is less."""
        if not value >= self.least:  # NaN is not
            raise ValueError(f"less than {self.least}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        inner = handler(source)
        if inner["type"] in ("int", "float"):
            return {**inner, "ge": self.least}
        return core_schema.no_info_after_validator_function(self.function, inner)


class _Doubtful(ValueError):  # noqa: N818 - a decision, not an error
    """It is not plainly right."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Record:
    """A frozen value with the fields that a subclass annotates, and those of its bases."""

    fields: ClassVar[Mapping[str, Field]] = {}
    strict: ClassVar[bool] = False  # whether "1" is no number, "yes" no boolean, a list no tuple

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        found: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            found |= vars(base).get("fields", {})
        for name, annotation in vars(cls).get("__annotations__", {}).items():
            if "ClassVar" in str(annotation):
                continue
            given = vars(cls).get(name, _MISSING)
            if given is not _MISSING:
                delattr(cls, name)
            known = given if isinstance(given, Field) else Field("", given, None, "")
            found[name] = known._replace(key=known.key or name)
        cls.fields = found

    def __init__(self, **values: Any) -> None:
        for name, known in self.fields.items():
            if name not in values and known.required:
                raise TypeError(f"{type(self).__name__} needs `{name}`")
            object.__setattr__(self, name, values.pop(name) if name in values else known.value())
        if values:
            raise TypeError(f"{type(self).__name__} has no `{next(iter(values))}`")
        self.check()

    def check(self) -> None:
        """Raise ValueError where fields do not go together."""

    @classmethod
    def long(cls, value: Any) -> Any:
        """The long form, a key for each field, of what stands in a file."""
        return value

    @classmethod
    def read(cls, value: Any) -> Self:
        """The record of what stands in a file; `Refused` says all that is wrong with it."""
        try:
            return _record(cls, value)
        except (ValueError, OverflowError):  # of an int that no float holds
            return _judged(cls, value)

    def replaced(self, **changes: Any) -> Self:
        """The same with other values of some fields."""
        return type(self)(**{**vars(self), **changes})

    def written(self) -> dict[str, Any]:
        """The long form as it would stand in a file: what is not as when it is left out."""
        return {
            known.key: value
            for name, known in self.fields.items()
            if (value := getattr(self, name)) != known.value()
        }

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({inside})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler.generate_schema(_model(cls))


def schema(kind: type[Record]) -> dict[str, Any]:
    """The JSON Schema of the long form."""
    return _model(kind).model_json_schema(by_alias=True)


# ── what is plainly right ────────────────────────────────────────────────────────────────────


def _hints(kind: type[Record]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind, include_extras=True)
    return _HINTS[kind]


def _record(kind: type[R], value: Any) -> R:
    value = kind.long(value)
    if type(value) is not dict:
        raise _Doubtful
    hints, left = _hints(kind), dict(value)
    values = {
        name: _plain(hints[name], left.pop(known.key), kind.strict)
        for name, known in kind.fields.items()
        if known.key in left
    }
    if left or any(known.required and name not in values for name, known in kind.fields.items()):
        raise _Doubtful
    return kind(**values)


def _plain(hint: Any, value: Any, strict: bool) -> Any:  # noqa: C901, PLR0911 - by kind of type
    """The value, which is of this type as it is: but an int is a float, and a list a tuple."""
    if hint is Any:
        return value
    if isinstance(hint, type):
        if issubclass(hint, Record):
            return _record(hint, value)
        if type(value) is hint:
            return value
        if hint is float and type(value) is int:
            return float(value)
        raise _Doubtful
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _marked(hint, value, strict)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, strict)
    if origin is Literal and any(type(value) is type(each) and value == each for each in arguments):
        return value
    if origin is list and type(value) is list:
        return [_plain(arguments[0], item, strict) for item in value]
    several = origin is tuple and arguments[1:] == (...,)
    if several and (type(value) is tuple or (type(value) is list and not strict)):
        return tuple(_plain(arguments[0], item, strict) for item in value)
    if origin is dict and type(value) is dict:
        return {
            _plain(arguments[0], k, strict): _plain(arguments[1], v, strict)
            for k, v in value.items()
        }
    raise _Doubtful


def _marked(hint: Any, value: Any, strict: bool) -> Any:
    """The value by an `Annotated` type and its marks."""
    found = _plain(typing.get_args(hint)[0], value, strict)
    for mark in hint.__metadata__:
        if isinstance(mark, Before):
            mark.function(value)
        else:
            found = mark.function(found)
    return found


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _one_of(types_: tuple[Any, ...], value: Any, strict: bool) -> Any:
    """The value as the only one of these types that takes it; pydantic chooses among several."""
    if type(value) in types_ and type(value) in _SCALARS:
        return value
    found = []
    for hint in types_:
        try:
            found.append(_plain(hint, value, strict))
        except _Doubtful:
            continue
    if len(found) != 1:
        raise _Doubtful
    return found[0]


# ── what is not ──────────────────────────────────────────────────────────────────────────────


def _judged(kind: type[R], value: Any) -> R:
    from pydantic import ValidationError

    try:
        found: R = _of_models(_model(kind).model_validate(value))
    except ValidationError as error:
        raise Refused(str(error), [dict(detail) for detail in error.errors()]) from None
    return found


def _of_models(value: Any) -> Any:
    """The same with records in the place of their models."""
    kind = _KINDS.get(type(value))
    if kind:
        return kind(**{name: _of_models(getattr(value, name)) for name in kind.fields})
    if type(value) in (list, tuple):
        return type(value)(map(_of_models, value))
    if type(value) is dict:
        return {key: _of_models(item) for key, item in value.items()}
    return value


_HINTS: dict[type[Record], dict[str, Any]] = {}
_MODELS: dict[type[Record], type[BaseModel]] = {}
_KINDS: dict[type, type[Record]] = {}  # by their models


def _model(kind: type[Record]) -> type[BaseModel]:
    """The record as a pydantic model, with the same fields and checks."""
    if kind not in _MODELS:
        _MODELS[kind] = _made_model(kind)
        _KINDS[_MODELS[kind]] = kind
    return _MODELS[kind]


def _made_model(kind: type[Record]) -> type[BaseModel]:
    import pydantic

    def long(cls: Any, value: Any) -> Any:  # noqa: ARG001 - as pydantic calls it
        return kind.long(value)

    def check(self: Any) -> Any:
        _of_models(self)
        return self

    def said(known: Field) -> Any:
        facts: dict[str, Any] = {"alias": known.key, "description": known.about or None}
        if known.required:
            return pydantic.Field(**facts)
        if known.default_factory:
            return pydantic.Field(default_factory=known.default_factory, **facts)
        return pydantic.Field(default=known.default, **facts)

    fields: dict[str, Any] = {
        name: (_hints(kind)[name], said(known)) for name, known in kind.fields.items()
    }
    validators: dict[str, Any] = {}  # where there are none, findings tell less of pydantic
    if kind.long.__func__ is not Record.long.__func__:  # type: ignore[attr-defined]
        validators["_long"] = pydantic.model_validator(mode="before")(long)
    if kind.check is not Record.check:
        validators["_check"] = pydantic.model_validator(mode="after")(check)
    return pydantic.create_model(
        kind.__name__,
        __config__=pydantic.ConfigDict(extra="forbid", strict=kind.strict),
        __doc__=kind.__doc__,
        __validators__=validators,
        **fields,
    )
