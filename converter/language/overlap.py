"""Do two rules, or a rule and a drop or a constant, claim one name?

Found when a mapping is loaded, with such a name as a witness.  Two patterns are compared by walking
through both at once: a state is a place in each, an edge a character that both can take there.  A
few names found so are tried on the rules as they are, with their repeated holes, tables and
exceptions; only a name that both take is reported.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from converter.errors import Diagnostic
from converter.language.names import (
    Bindings,
    Hole,
    Lookup,
    Selector,
    Star,
    Template,
    TemplateError,
    Text,
    Token,
)
from converter.language.rules import Make, Place, Rule, Rules

MAX_VISITS = 4  # of a state, by different names
MAX_STATES = 50_000  # of all pairs together; what is left unseen, the plan finds
MAX_TRIED = 64  # names that both templates may take

DROPS = {"sources": "drops", "targets": "target_drops"}
_NO_CLASH = ({"drop"}, {"drop", "constant"})  # going back, what was made is dropped

DIGIT, WORD, ANY = "digit", "word", "any"  # what one character may be, besides itself
_DIGITS = "91"
_LETTERS = "xy"

State = tuple[int, int, int]  # token, alternative, character; -1 where it is none


class _Claim(NamedTuple):
    """A pattern by which something takes names, or makes them; `number` counts whose it is."""

    kind: str  # "rule", "drop" or "constant"
    number: int
    place: Place
    pattern: Template | Selector
    takes: Callable[[str], bool]  # the pattern, and all that is said besides


def overlaps(rules: Rules) -> list[Diagnostic]:
    """An error for each two that can take one source, or make one target: rules, drops, constants.

    A drop may name what another drops; those of groups come before the rules, so they never clash.
    """
    found: list[Diagnostic] = []
    told: set[tuple[int, int, str]] = set()
    budget = itertools.repeat(None, MAX_STATES)
    for side in ("sources", "targets"):
        for one, other in _candidates(list(_all_claims(rules, side))):
            pair = (one.number, other.number, "" if other.kind == "rule" else side)
            if pair not in told:
                name = _witness(one, other, budget)
                if name is not None:
                    told.add(pair)
                    found.append(_diagnostic(one, other, side, name))
    return found


def _all_claims(rules: Rules, side: str) -> Iterator[_Claim]:
    """The claims of a side; each rule, constant and drop has a number of its own."""
    number = itertools.count()
    for rule, nth in zip(rules.rules, number, strict=False):
        place = rule.place if side == "sources" else rule.target_place
        takes = _takes if side == "sources" else _makes
        for template in getattr(rule, side):
            yield _Claim("rule", nth, place, template, partial(takes, rule, template))
    for make, nth in zip(rules.makes if side == "targets" else (), number, strict=False):
        yield _Claim("constant", nth, make.place, make.target, partial(_is_made, make))
    for drop, nth in zip(getattr(rules, DROPS[side]), number, strict=False):
        if not drop.group:
            yield _Claim("drop", nth, drop.place, drop.matches, drop.matches)


def _takes(rule: Rule, template: Template, name: str) -> bool:
    bindings = template.match(name)
    return bindings is not None and not rule.leaves(name, bindings)


def _makes(rule: Rule, template: Template, name: str) -> bool:
    bindings = template.match(name)
    if bindings is None or rule.leaves_target(name, bindings):
        return False
    return _can_be(rule.sources, bindings)


def _is_made(make: Make, name: str) -> bool:
    bindings = make.target.match(name)
    return bindings is not None and _can_be([make.each] if make.each else [], bindings)


def _diagnostic(one: _Claim, other: _Claim, side: str, name: str) -> Diagnostic:
    does = "claim" if "drop" in (one.kind, other.kind) else "take" if side == "sources" else "make"
    that = "one" if one.kind == other.kind else one.kind
    both = f"this {other.kind} and the {that} at {one.place}"
    if one.number == other.number:
        both = "two templates of the rule"
    return other.place.diagnostic(
        "MAP111",
        f"{both} {does} one name, e.g. '{name}'",
        expected=f"one rule for each {side.removesuffix('s')}",
        found=f"`{one.pattern.text}` and `{other.pattern.text}`",
        hint="leave the name to one of them with `except`",
    )


def _candidates(claims: Sequence[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs that their literal beginnings and ends do not keep apart, each once."""
    buckets: dict[str | None, list[_Claim]] = defaultdict(list)
    for claim in claims:
        last = dict(claim.pattern.anchors).get(-1)
        buckets[last].append(claim)
    free = buckets.pop(None, [])
    pairs = [pair for bucket in buckets.values() for pair in itertools.combinations(bucket, 2)]
    pairs += itertools.combinations(free, 2)
    pairs += [(one, other) for one in free for bucket in buckets.values() for other in bucket]
    for one, other in pairs:
        if _compatible(one, other):
            yield (one, other) if one.number <= other.number else (other, one)


def _compatible(one: _Claim, other: _Claim) -> bool:
    """May both match a name, by the literal text at either end and by literal segments?"""
    if {one.kind, other.kind} in _NO_CLASH:
        return False
    (a, y), (b, z) = _ends(one), _ends(other)
    if not (a.startswith(b) or b.startswith(a)) or not (y.endswith(z) or z.endswith(y)):
        return False
    anchors = dict(other.pattern.anchors)
    return all(anchors.get(position, text) == text for position, text in one.pattern.anchors)


def _ends(claim: _Claim) -> tuple[str, str]:
    """The literal texts that the names start and end with."""
    tokens = claim.pattern.tokens or (Text(""),)
    first, last = tokens[0], tokens[-1]
    return (
        first.text if isinstance(first, Text) else "",
        last.text if isinstance(last, Text) else "",
    )


def _witness(one: _Claim, other: _Claim, budget: Iterator[None]) -> str | None:
    """A name that both take, or make."""
    for name in _names(one, other, budget):
        if one.takes(name) and other.takes(name):
            return name
    return None


def _can_be(templates: Sequence[Template], bindings: Bindings) -> bool:
    """Can sources be called so, as far as these bindings say?"""
    try:
        for template in templates:
            if template.holes <= bindings.keys():
                template.format(bindings)
    except TemplateError:
        return False
    return True


def _names(one: _Claim, other: _Claim, budget: Iterator[None]) -> Iterator[str]:
    """Names that both patterns may match, the shortest first."""
    for literal, claim in ((one, other), (other, one)):
        texts = [token.text for token in literal.pattern.tokens if isinstance(token, Text)]
        if len(texts) == len(literal.pattern.tokens):
            name = "".join(texts)
            yield from [name] * claim.pattern(name)
            return
    found = _common_names(_Machine(one.pattern.tokens), _Machine(other.pattern.tokens), budget)
    yield from itertools.islice(found, MAX_TRIED)


def _common_names(left: _Machine, right: _Machine, budget: Iterator[None]) -> Iterator[str]:
    queue: deque[tuple[State, State, str]] = deque([(left.start, right.start, "")])
    visits: dict[tuple[State, State], int] = defaultdict(int)
    for _ in budget:
        if not queue:
            break
        a, b, name = queue.popleft()
        if left.ends(a) and right.ends(b):
            yield name
        edges = right.edges(b)
        for wants, after in left.edges(a):
            for also, then in edges:
                if visits[after, then] < MAX_VISITS:
                    visits[after, then] += 1
                    queue.extend((after, then, name + char) for char in _common(wants, also))


class _Machine:
    """The places within a pattern, and the characters that lead from one to the next."""

    def __init__(self, tokens: tuple[Token | Star, ...]) -> None:
        self.tokens = tokens
        self.start: State = (0, -1, 0)

    def ends(self, state: State) -> bool:
        """May a name end here?"""
        token, _, character = state
        if character > 0 and _alternatives(self.tokens[token]) is None:
            token += 1
        elif character > 0:
            return False
        return all(isinstance(each, Star) for each in self.tokens[token:])

    def edges(self, state: State) -> list[tuple[str, State]]:
        """What a character may be here, and where it leads."""
        index, alternative, character = state
        if index == len(self.tokens):
            return []
        token = self.tokens[index]
        texts = _alternatives(token)
        if texts is None:
            again = [(_class(token), (index, -1, 1))]
            may_end = character or isinstance(token, Star)
            return again + (self.edges((index + 1, -1, 0)) if may_end else [])
        chosen = range(len(texts)) if alternative < 0 else [alternative]
        found = []
        for k in chosen:
            if not texts[k]:
                found += self.edges((index + 1, -1, 0))
                continue
            last = character + 1 == len(texts[k])
            after = (index + 1, -1, 0) if last else (index, k, character + 1)
            found.append((texts[k][character], after))
        return found


def _alternatives(token: Token | Star) -> tuple[str, ...] | None:
    """The texts that a token may be, where it is one of some."""
    if isinstance(token, Text):
        return (token.text,)
    if isinstance(token, Lookup):
        return tuple(token.table.entries.values())
    return token.choices if isinstance(token, Hole) and token.kind == "choice" else None


def _class(token: Token | Star) -> str:
    """What each character of a hole or a star is."""
    if isinstance(token, Star):
        return ANY if token.wide else WORD
    kind = token.kind if isinstance(token, Hole) else None
    return {"int": DIGIT, "word": WORD}.get(str(kind), ANY)


def _common(one: str, other: str) -> str:
    """Characters that are both of these."""
    if len(one) == 1 or len(other) == 1:
        char, wants = (one, other) if len(one) == 1 else (other, one)
        return char if _fits(char, wants) else ""
    return _DIGITS if DIGIT in (one, other) else _LETTERS


def _fits(char: str, wants: str) -> bool:
    if len(wants) == 1:
        return char == wants
    return wants == ANY or (char.isdecimal() if wants == DIGIT else char not in "/.")
