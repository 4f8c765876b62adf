"""Names: templates that match a whole name, capture its parts, and are solved for the way back.

    conv{b}/conv{b}_{k}/weights     {b}, {k}: whole numbers; the same hole matches the same number
    {unit-1}                        an offset, solved backward
    {n:02}                          a number padded with zeros to two digits
    {part:word}                     one segment: anything but "/" and "."
    {rest:path}                     anything
    {p:gamma|beta}                  one of these; `{p:weight|bias}` on the other side pairs with it
    {feature[b,k]}                  the table `feature`, looked up by b and k, and backward
    {depth}, {depth+1}              the number of the mapping's size `depth`, if it has one

Templates are not regular expressions, so they invert; and a template that could match one name in
two ways is refused when it is read, so no order or greed ever decides.

`Selector`s (`drop`, `except`, `--match`) capture nothing and know two more words: `*` is a segment
or a part of one, `**` anything.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from converter.language.yaml import texts as texts_in

Kind = Literal["int", "word", "path", "choice"]
Value = int | str
Bindings = dict[str, Value]
Sizes = Mapping[str, int | None]  # of the mapping; None: it must be given from outside
NO_SIZES: Sizes = MappingProxyType({})

_WORD = "[^/.]"
_HOLE = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"(?:(?P<offset>[+-][0-9]{1,9})|:(?P<type>[^{}]+)|\[(?P<keys>[^\[\]]+)\])?"
)
_PADDED = re.compile(r"0([1-9])")
MAX_NAME = 4096
_HOLE_MARK = "\0"  # in no name
MAX_WILD = 8  # stars and holes of a selector


class TemplateError(ValueError):
    """A template that cannot be read or would be ambiguous; `offset` is the character, from 0."""

    def __init__(self, message: str, offset: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.offset = offset
        self.hint = hint


@dataclass(frozen=True)
class Table:
    """A bijection from keys (one or several values) to texts."""

    name: str
    entries: Mapping[tuple[str, ...], str]

    @cached_property
    def backward(self) -> dict[str, tuple[str, ...]]:
        """Text to key."""
        return {text: key for key, text in self.entries.items()}

    @property
    def width(self) -> int:
        """How many values a key has."""
        return len(next(iter(self.entries)))

    def of(self, fixed: Mapping[int, str]) -> Table:
        """The entries whose keys have these values at these places, by the rest of their keys."""
        chosen = {
            tuple(part for k, part in enumerate(key) if k not in fixed): text
            for key, text in self.entries.items()
            if all(key[k] == value for k, value in fixed.items())
        }
        return Table(self.name, chosen)


class Text(NamedTuple):
    """Text that stands for itself."""

    text: str


class Hole(NamedTuple):
    """A captured part of a name."""

    name: str
    kind: Kind | None  # None: as declared elsewhere in the rule, else a whole number
    at: int  # character of the template
    offset: int = 0
    width: int = 0  # zero-padded digits
    choices: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """The regular expression of the text that fits."""
        if self.kind == "choice":
            return "|".join(map(re.escape, sorted(self.choices, key=len, reverse=True)))
        if self.kind == "int":
            return f"[0-9]{{{self.width},}}" if self.width else "0|[1-9][0-9]*"
        return f"{_WORD}+" if self.kind == "word" else ".+"

    def read(self, text: str, bindings: Bindings) -> bool:
        """Bind the captured text; False when it contradicts what is bound."""
        value: Value = text
        if self.kind == "choice":
            value = self.choices.index(text)
        elif self.kind == "int":
            value = int(text) - self.offset
            if value < 0 or (self.width and f"{int(text):0{self.width}d}" != text):
                return False
        return bindings.setdefault(self.name, value) == value

    def write(self, bindings: Mapping[str, Value]) -> str | None:
        """The text for these bindings; None when there is none."""
        value = bindings[self.name]
        if self.kind == "choice":
            return self.choices[int(value)] if int(value) < len(self.choices) else None
        if self.kind == "int":
            number = int(value) + self.offset
            return str(number).zfill(self.width) if number >= 0 else None
        return str(value)


class Lookup(NamedTuple):
    """A table's text for the values of some holes."""

    table: Table
    keys: tuple[str, ...]
    kinds: tuple[Kind, ...]
    at: int

    @property
    def pattern(self) -> str:
        """The regular expression of the texts in the table."""
        texts = sorted(self.table.entries.values(), key=len, reverse=True)
        return "|".join(map(re.escape, texts))

    def read(self, text: str, bindings: Bindings) -> bool:
        """Bind the holes that the table's entry for this text stands for."""
        values = zip(self.keys, self.kinds, self.table.backward[text], strict=True)
        return all(
            bindings.setdefault(key, _value(kind, part)) == _value(kind, part)
            for key, kind, part in values
        )

    def write(self, bindings: Mapping[str, Value]) -> str | None:
        """The table's text; None when it has no entry."""
        return self.table.entries.get(tuple(str(bindings[key]) for key in self.keys))


class Star(NamedTuple):
    """A part of a segment, or anything; only in selectors."""

    wide: bool


Token = Text | Hole | Lookup


def _value(kind: Kind, text: str) -> Value:
    return int(text) if kind == "int" else text


@dataclass(frozen=True)
class Template:
    """A parsed template: `match` reads a name, `format` writes one."""

    text: str
    tokens: tuple[Token, ...] = field(repr=False)

    @cached_property
    def variables(self) -> tuple[Hole | Lookup, ...]:
        """The tokens that are not literal."""
        return tuple(token for token in self.tokens if not isinstance(token, Text))

    @cached_property
    def holes(self) -> frozenset[str]:
        """Names of everything that a match binds."""
        names = (
            token.keys if isinstance(token, Lookup) else (token.name,) for token in self.variables
        )
        return frozenset(name for group in names for name in group)

    @cached_property
    def kinds(self) -> dict[str, Kind | None]:
        """What each hole is."""
        found: dict[str, Kind | None] = {}
        for token in self.variables:
            if isinstance(token, Lookup):
                found |= zip(token.keys, token.kinds, strict=True)
            else:
                found[token.name] = token.kind
        return found

    @cached_property
    def prefix(self) -> str:
        """The literal text that every match starts with."""
        first = self.tokens[0] if self.tokens else Text("")
        return first.text if isinstance(first, Text) else ""

    @cached_property
    def suffix(self) -> str:
        """The literal text that every match ends with."""
        last = self.tokens[-1] if self.tokens else Text("")
        return last.text if isinstance(last, Text) else ""

    @cached_property
    def anchors(self) -> tuple[tuple[int, str], ...]:
        """Segments that every match has: (position, text), counted from the end when negative."""
        found: list[tuple[int, str]] = []
        for sign, tokens in ((1, self.tokens), (-1, tuple(reversed(self.tokens)))):
            fixed = list(itertools.takewhile(lambda token: not _spans(token), tokens))
            whole = len(fixed) == len(tokens)
            text = "".join(t.text if isinstance(t, Text) else _HOLE_MARK for t in fixed[::sign])
            segments = split(text)
            if not whole:  # the segment that runs into the free text is not known
                segments = segments[:-1] if sign > 0 else segments[1:]
            start = 0 if sign > 0 else -len(segments)
            found += [(start + k, s) for k, s in enumerate(segments) if _HOLE_MARK not in s]
        return tuple(found)

    @cached_property
    def _fullmatch(self) -> Callable[[str], re.Match[str] | None]:
        parts = (
            re.escape(token.text) if isinstance(token, Text) else f"({token.pattern})"
            for token in self.tokens
        )
        return re.compile("".join(parts), re.DOTALL).fullmatch

    def match(self, name: str) -> Bindings | None:
        """What the holes hold when the whole name fits, else None."""
        if not self.variables:
            return {} if name == self.prefix else None
        if not name.startswith(self.prefix) or len(name) > MAX_NAME:
            return None
        found = self._fullmatch(name)
        if not found:
            return None
        bindings: Bindings = {}
        for token, text in zip(self.variables, found.groups(), strict=True):
            if not token.read(text, bindings):
                return None
        return bindings

    @cached_property
    def _plain(self) -> str | None:
        """The template for `str.format_map`, if its holes are written as they are."""
        parts = []
        for token in self.tokens:
            if isinstance(token, Text):
                parts.append(token.text.replace("{", "{{").replace("}", "}}"))
            elif isinstance(token, Lookup) or token.kind == "choice" or token.offset or token.width:
                return None
            else:
                parts.append(f"{{{token.name}}}")
        return "".join(parts)

    def format(self, bindings: Mapping[str, Value]) -> str:
        """The name for these bindings; `TemplateError` when an entry or a number does not exist."""
        if self._plain is not None:
            return self._plain.format_map(bindings)
        parts = []
        for token in self.tokens:
            text = token.text if isinstance(token, Text) else token.write(bindings)
            if text is None:
                values = ", ".join(f"{name}={value}" for name, value in sorted(bindings.items()))
                assert not isinstance(token, Text)  # noqa: S101 - a literal is always written
                raise TemplateError(f"`{self.text}` has no name for {values}", token.at)
            parts.append(text)
        return "".join(parts)

    def __call__(self, name: str) -> bool:
        """Does the whole name fit?"""
        return self.match(name) is not None

    def scoped(self, scope: str) -> Template:
        """The same template under a prefix."""
        return Template(scope + self.text, _joined((Text(scope), *self.tokens)))

    def within(self, scope: Scope) -> Template:
        """The template put into a scope's place; its holes are not those of the scope.

        Raises `TemplateError` when names would match in more than one way.
        """
        tokens = _joined((*scope.before, *map(_renamed, self.tokens), *scope.after))
        template = Template(scope.around(self.text), tokens)
        _check_unambiguous(template)
        return template


class Scope(NamedTuple):
    """What stands before and after the names of an included mapping; it may have holes."""

    text: str
    before: tuple[Token, ...] = ()
    after: tuple[Token, ...] = ()
    at: int | None = None  # where in the text the name stands; None: after it

    @property
    def holes(self) -> frozenset[str]:
        """The names of its holes."""
        return Template(self.text, (*self.before, *self.after)).holes

    def around(self, text: str) -> str:
        """The text of a template within this scope."""
        at = len(self.text) if self.at is None else self.at
        return self.text[:at] + text + self.text[at + len(_NAME_HERE) :]


_NAME_HERE = "{}"  # in a scope: here stands the name; without it, at the end


def parse_scopes(
    texts: Iterable[str], tables: Mapping[str, Table], sizes: Sizes = NO_SIZES
) -> list[Scope]:
    """The scopes of one include: `block{i}/conv/`, or `layers/{}:0`; `TemplateError` as `parse`."""
    texts = list(texts)
    places = [_name_here(text) for text in texts]
    halves: list[str] = []
    for text, at in zip(texts, places, strict=True):
        halves += [text, ""] if at is None else [text[:at], text[at + len(_NAME_HERE) :]]
    try:
        found = parse(halves, tables, sizes)
    except TemplateError as error:
        half = getattr(error, "template", 0)
        error.offset += (places[half // 2] or 0) + len(_NAME_HERE) if half % 2 else 0
        error.template = half // 2  # type: ignore[attr-defined]
        raise
    return [
        Scope(text, found[2 * k].tokens, found[2 * k + 1].tokens, at)
        for k, (text, at) in enumerate(zip(texts, places, strict=True))
    ]


def words_in_braces(data: Any) -> set[str]:
    """Every word that a template in this plain data could take for a hole, a size or a table."""
    holes = (hole for text in texts_in(data) for hole in re.findall(r"\{([^{}]+)\}", text))
    return {word for hole in holes for word in re.findall(r"\w+", hole)}


def _name_here(text: str) -> int | None:
    """Where `{}` stands, outside of braces that are written twice."""
    found = [match.start() for match in re.finditer(r"\{\{|\}\}|\{\}", text) if match[0] == "{}"]
    return found[0] if found else None


def _renamed(token: Token) -> Token:
    """The token with names of holes that nobody can write, so that they are no scope's."""
    if isinstance(token, Hole):
        return token._replace(name=f"{token.name}'")
    if isinstance(token, Lookup):
        return token._replace(keys=tuple(f"{key}'" for key in token.keys))
    return token


def split(name: str) -> list[str]:
    """The segments of a name: what stands between its slashes and dots."""
    return name.replace(".", "/").split("/")  # far quicker than a regular expression


def _spans(token: Token) -> bool:
    """Can the token's text hold a separator, so that segments after it cannot be counted?"""
    return not isinstance(token, Text) and (_fits(token, "/") or _fits(token, "."))


def parse(
    texts: Iterable[str], tables: Mapping[str, Table], sizes: Sizes = NO_SIZES
) -> list[Template]:
    """The templates of one rule; a hole's type, given once, holds in all of them.

    Raises `TemplateError`; its `template` attribute is the index of the text.
    """
    raw = []
    for index, text in enumerate(texts):
        with _located(index):
            raw.append((text, _tokens(text, tables, sizes)))
    kinds = _kinds(raw)
    templates = []
    for index, (text, tokens) in enumerate(raw):
        with _located(index):
            known = kinds | _declared(tokens)  # a name's own choices come before its counterpart's
            template = Template(text, _joined(_typed(token, known) for token in tokens))
            _check_unambiguous(template)
            templates.append(template)
    _check_choices(templates)
    return templates


class _located:  # noqa: N801 - a context manager that reads like a word
    """Note on a passing `TemplateError` which of the texts it is about."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TemplateError):
            error.template = self.index  # type: ignore[attr-defined]


def _tokens(text: str, tables: Mapping[str, Table], sizes: Sizes) -> list[Token]:
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        char = text[position]
        if text[position : position + 2] in ("{{", "}}"):
            tokens.append(Text(char))
            position += 2
        elif char == "{":
            end = text.find("}", position)
            if end < 0:
                raise TemplateError("a brace is not closed", position, "write {{ for a brace")
            tokens.append(_hole(text[position + 1 : end], position + 1, tables, sizes))
            position = end + 1
        elif char == "}":
            raise TemplateError("a closing brace without an opening one", position, "write }}")
        elif char == "*":
            raise TemplateError(
                "`*` captures nothing, so it has no way back", position, "name it: {x:word}"
            )
        else:
            tokens.append(Text(char))
            position += 1
    return list(_joined(tokens))


def _hole(text: str, at: int, tables: Mapping[str, Table], sizes: Sizes) -> Token:
    found = _HOLE.fullmatch(text)
    if not found:
        raise TemplateError(
            f"`{{{text}}}` is not a hole",
            at,
            "{i}, {i-1}, {x:word}, {x:path}, {x:a|b} or {table[i]}",
        )
    name, kind = found["name"], found["type"]
    if found["keys"] is not None:
        keys = [key.strip() for key in found["keys"].split(",")]
        return _lookup(name, keys, at, tables, sizes)
    if kind is not None:
        return _typed_hole(name, kind, at)
    offset = int(found["offset"] or 0)
    if name in sizes:
        return Text(str(_number(name, at, sizes) + offset))
    return Hole(name, "int" if found["offset"] else None, at, offset=offset)


def _typed_hole(name: str, kind: str, at: int) -> Hole:
    if kind in ("int", "word", "path"):
        return Hole(name, kind, at)  # type: ignore[arg-type]
    padded = _PADDED.fullmatch(kind)
    if padded:
        return Hole(name, "int", at, width=int(padded[1]))
    choices = tuple(kind.split("|"))
    if len(choices) < 2 or "" in choices or len(set(choices)) < len(choices):  # noqa: PLR2004
        raise TemplateError(
            f"'{kind}' is not a type of holes", at + len(name) + 1, "int, word, path, 02, or a|b|c"
        )
    return Hole(name, "choice", at, choices=choices)


def _number(name: str, at: int, sizes: Sizes) -> int:
    """The number of a size that stands in a name."""
    number = sizes[name]
    if number is None:
        raise TemplateError(f"size '{name}' has no number", at, f"give one: --size {name}=...")
    return number


def _lookup(
    name: str, keys: list[str], at: int, tables: Mapping[str, Table], sizes: Sizes
) -> Lookup | Text:
    if name not in tables:
        known = ", ".join(sorted(tables)) or "none is declared"
        raise TemplateError(f"there is no table '{name}'", at, f"tables: {known}")
    table = tables[name]
    if len(keys) != table.width:
        raise TemplateError(f"table '{name}' is looked up by {table.width} values", at)
    fixed = {k: str(_number(key, at, sizes)) for k, key in enumerate(keys) if key in sizes}
    chosen = table.of(fixed) if fixed else table
    if not chosen.entries:
        given = ", ".join(f"{keys[k]}={value}" for k, value in fixed.items())
        raise TemplateError(f"table '{name}' has nothing for {given}", at)
    holes = tuple(key for key in keys if key not in sizes)
    if not holes:  # the sizes alone say which
        return Text(chosen.entries[()])
    kinds: tuple[Kind, ...] = tuple("int" for _ in holes)
    return Lookup(chosen, holes, kinds, at)


def _kinds(raw: list[tuple[str, list[Token]]]) -> dict[str, Hole]:
    """What each hole was declared as, wherever in the rule that was."""
    declared: dict[str, Hole] = {}
    for index, (_, tokens) in enumerate(raw):
        for token in tokens:
            if not isinstance(token, Hole) or token.kind is None:
                continue
            other = declared.setdefault(token.name, token)
            if other.kind != token.kind:
                error = TemplateError(
                    f"hole '{token.name}' is {token.kind} here and {other.kind} elsewhere", token.at
                )
                error.template = index  # type: ignore[attr-defined]
                raise error
    return declared


def _declared(tokens: Iterable[Token]) -> dict[str, Hole]:
    """The holes that have a type here."""
    return {token.name: token for token in tokens if isinstance(token, Hole) and token.kind}


def _typed(token: Token, kinds: Mapping[str, Hole]) -> Token:
    if isinstance(token, Hole) and token.kind is None:
        model = kinds.get(token.name)
        kind = model.kind if model and model.kind else "int"
        choices = model.choices if model else ()
        return Hole(token.name, kind, token.at, choices=choices)
    if isinstance(token, Lookup):
        types = tuple(kinds[key].kind or "int" if key in kinds else "int" for key in token.keys)
        for entry in token.table.entries:
            for key, kind, text in zip(token.keys, types, entry, strict=True):
                if kind == "choice" or not re.fullmatch(Hole(key, kind, 0).pattern, text):
                    raise TemplateError(
                        f"'{text}' in table '{token.table.name}' is no {kind}, as '{key}' is",
                        token.at,
                        f"say what it is where it stands alone, as in {{{key}:word}}",
                    )
        return Lookup(token.table, token.keys, types, token.at)
    return token


def _joined(tokens: Iterable[Token]) -> tuple[Token, ...]:
    """Neighbouring literals made one."""
    result: list[Token] = []
    for token in tokens:
        if isinstance(token, Text) and result and isinstance(result[-1], Text):
            result[-1] = Text(result[-1].text + token.text)
        elif token != Text(""):
            result.append(token)
    return tuple(result)


def _fits(token: Hole | Lookup | Star, char: str) -> bool:
    """Can the token's text hold this character?"""
    if isinstance(token, Star):
        return token.wide or char not in "/."
    if isinstance(token, Lookup):
        return any(char in text for text in token.table.entries.values())
    if token.kind == "choice":
        return any(char in text for text in token.choices)
    if token.kind == "int":
        return char in "0123456789"
    return token.kind == "path" or char not in "/."


def _check_unambiguous(template: Template) -> None:
    """Every name must match in at most one way.

    A text between two holes is found by a character of it that the hole before cannot hold, once
    that hole's start is known; or that the hole after cannot hold, once its end is known; or, with
    nothing else known, that no hole before or no hole after can hold.  So between texts of that
    last kind, texts that are found from the end must all come after those found from the start.
    """
    holes = template.variables
    from_the_end: Hole | Lookup | None = None
    for index, text in enumerate(_between(template.tokens)):
        before, after = holes[index], holes[index + 1]
        left = any(not _fits(before, char) for char in text)
        right = any(not _fits(after, char) for char in text)
        if not left and not right:
            raise TemplateError(
                "ambiguous: two holes need a text between them that shows where one ends",
                after.at,
            )
        if any(
            not any(_fits(hole, char) for hole in side)
            for char in text
            for side in (holes[: index + 1], holes[index + 1 :])
        ):
            from_the_end = None
            continue
        if not left:
            from_the_end = from_the_end or before
        if from_the_end and not right:
            raise TemplateError(
                f"ambiguous: '{_label(from_the_end)}' and '{_label(after)}' share a text in "
                "several ways",
                after.at,
                "put a / or . between them, or give one of them a narrower type",
            )


def _between(tokens: Iterable[Token]) -> list[str]:
    """The text after each hole but the last: nothing, where two holes touch."""
    texts: list[str] = []
    for token in tokens:
        if not isinstance(token, Text):
            texts.append("")
        elif texts:
            texts[-1] = token.text
    return texts[:-1]


def _label(token: Hole | Lookup) -> str:
    return token.name if isinstance(token, Hole) else token.table.name


def _check_choices(templates: Iterable[Template]) -> None:
    """The alternatives of one hole must pair up over the rule."""
    seen: dict[str, Hole] = {}
    for index, template in enumerate(templates):
        for token in template.variables:
            if isinstance(token, Hole) and token.kind == "choice":
                other = seen.setdefault(token.name, token)
                if len(other.choices) != len(token.choices):
                    error = TemplateError(
                        f"hole '{token.name}' has {len(token.choices)} alternatives here and "
                        f"{len(other.choices)} elsewhere; they pair up in order",
                        token.at,
                    )
                    error.template = index  # type: ignore[attr-defined]
                    raise error


@dataclass(frozen=True)
class Selector:
    """A pattern that only says yes or no: templates' words, and `*` (a segment), `**` anything.

    Under a `scope` only names that start with it fit, and what follows is compared; `before` and
    `after` are the scope of an include.
    """

    text: str
    scope: str = ""
    before: tuple[Token, ...] = ()
    after: tuple[Token, ...] = ()
    sizes: Sizes = field(default_factory=dict, compare=False)

    @cached_property
    def _parts(self) -> tuple[Token | Star, ...]:
        parts: list[Token | Star] = [*self.before]
        position = 0
        for text in re.split(r"(\*\*|\*)", self.text):
            try:
                if text in ("*", "**"):
                    parts.append(Star(wide=text == "**"))
                else:
                    parts += [_typed(token, {}) for token in _tokens(text, {}, self.sizes)]
            except TemplateError as error:
                error.offset += position
                raise
            position += len(text)
        return (*parts, *self.after)

    @property
    def tokens(self) -> tuple[Token | Star, ...]:
        """What a name is made of, but for the prefix under which a mapping is used."""
        return self._parts

    @cached_property
    def _suffix(self) -> str:
        last = self._parts[-1] if self._parts else Text("")
        return last.text if isinstance(last, Text) else ""

    @cached_property
    def anchors(self) -> tuple[tuple[int, str], ...]:
        """The last segment, as `Template.anchors` has it, where it is literal."""
        if self.before or self.after:
            return ()
        last = split(self.scope + self.text)[-1]
        return () if set(last) & set("*{}") else ((-1, last),)

    def __call__(self, name: str) -> bool:
        """Does the whole name fit?"""
        if not name.endswith(self._suffix):  # says no to most, and quickly
            return False
        if not name.startswith(self.scope) or len(name) > MAX_NAME:
            return False
        ends = {len(self.scope)}  # of all the ways at once, so that no name takes long
        for part in self._parts:
            ends = _ends(part, name, ends)
            if not ends:
                return False
        return len(name) in ends

    def scoped(self, scope: str) -> Selector:
        """The same selector under a prefix."""
        return replace(self, scope=scope + self.scope)

    def within(self, scope: Scope) -> Selector:
        """The selector put into a scope's place."""
        before = (*scope.before, *((Text(self.scope),) if self.scope else ()), *self.before)
        return replace(self, scope="", before=before, after=(*self.after, *scope.after))


def parse_selector(text: str, sizes: Sizes = NO_SIZES) -> Selector:
    """A selector; `TemplateError` when it cannot be read."""
    selector = Selector(text, sizes=sizes)
    wild = sum(not isinstance(part, Text) for part in selector._parts)  # noqa: SLF001
    if wild > MAX_WILD:
        raise TemplateError(f"at most {MAX_WILD} stars and holes")
    return selector


def _ends(part: Token | Star, name: str, starts: set[int]) -> set[int]:
    """Where a part of a selector may end that begins at one of `starts`."""
    if isinstance(part, Text):
        return {at + len(part.text) for at in starts if name.startswith(part.text, at)}
    if isinstance(part, Star):
        return _run(part, name, starts)
    if isinstance(part, Lookup) or part.kind == "choice":
        texts = part.table.entries.values() if isinstance(part, Lookup) else part.choices
        return {at + len(text) for text in texts for at in starts if name.startswith(text, at)}
    for _ in range(max(1, part.width)):
        starts = {at + 1 for at in starts if at < len(name) and _fits(part, name[at])}
    return _run(part, name, starts)


def _run(part: Hole | Star, name: str, starts: set[int]) -> set[int]:
    """These places, and all that characters which fit lead to from there."""
    found: set[int] = set()
    for start in starts:
        at = start
        while at not in found:
            found.add(at)
            at += at < len(name) and _fits(part, name[at])
    return found
