"""Do two rules claim one name?  Found when a mapping is loaded, with such a name as a witness.

Two templates are compared by walking through both at once: a state is a place in each, an edge a
character that both can take there.  A few names found so are tried on the rules as they are, with
their repeated holes, tables and exceptions; only a name that both take is reported.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from converter.errors import Diagnostic
from converter.language.names import Bindings, Hole, Lookup, Template, TemplateError, Text, Token
from converter.language.rules import Rule

MAX_VISITS = 4  # of a state, by different names
MAX_STATES = 50_000  # of all pairs together; what is left unseen, the plan finds
MAX_TRIED = 64  # names that both templates may take

DIGIT, WORD, ANY = "digit", "word", "any"  # what one character may be, besides itself
_DIGITS = "91"
_LETTERS = "xy"

State = tuple[int, int, int]  # token, alternative, character; -1 where it is none


class _Claim(NamedTuple):
    """A template of a rule."""

    rule: Rule
    template: Template
    number: int


def overlaps(rules: Sequence[Rule]) -> list[Diagnostic]:
    """An error for each pair of rules that can take one source, or make one target."""
    found: list[Diagnostic] = []
    told: set[tuple[int, int]] = set()
    budget = itertools.repeat(None, MAX_STATES)
    for side in ("sources", "targets"):
        claims = [
            _Claim(rule, template, index)
            for index, rule in enumerate(rules)
            for template in getattr(rule, side)
        ]
        for one, other in _candidates(claims):
            pair = (one.number, other.number)
            if pair not in told:
                name = _witness(one, other, side, budget)
                if name is not None:
                    told.add(pair)
                    found.append(_diagnostic(one, other, side, name))
    return found


def _diagnostic(one: _Claim, other: _Claim, side: str, name: str) -> Diagnostic:
    does = "take" if side == "sources" else "make"
    itself = one.number == other.number
    both = "two templates of the rule" if itself else f"this rule and the one at {one.rule.place}"
    place = other.rule.place if side == "sources" else other.rule.target_place
    return place.diagnostic(
        "MAP111",
        f"{both} {does} one name, e.g. '{name}'",
        expected=f"one rule for each {side.removesuffix('s')}",
        found=f"`{one.template.text}` and `{other.template.text}`",
        hint="leave the name to one of them with `except`",
    )


def _candidates(claims: Sequence[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Pairs that their literal beginnings and ends do not keep apart, each once."""
    buckets: dict[str | None, list[_Claim]] = defaultdict(list)
    for claim in claims:
        last = dict(claim.template.anchors).get(-1)
        buckets[last].append(claim)
    free = buckets.pop(None, [])
    pairs = [pair for bucket in buckets.values() for pair in itertools.combinations(bucket, 2)]
    pairs += itertools.combinations(free, 2)
    pairs += [(one, other) for one in free for bucket in buckets.values() for other in bucket]
    for one, other in pairs:
        if _compatible(one.template, other.template):
            yield (one, other) if one.number <= other.number else (other, one)


def _compatible(one: Template, other: Template) -> bool:
    """May both match a name, by the literal text at either end and by literal segments?"""
    a, b = one.prefix, other.prefix
    if not (a.startswith(b) or b.startswith(a)):
        return False
    a, b = one.suffix, other.suffix
    if not (a.endswith(b) or b.endswith(a)):
        return False
    anchors = dict(other.anchors)
    return all(anchors.get(position, text) == text for position, text in one.anchors)


def _witness(one: _Claim, other: _Claim, side: str, budget: Iterator[None]) -> str | None:
    """A name that both rules take, or make."""
    for name in _names(one.template, other.template, budget):
        if _claims(one, name, side) and _claims(other, name, side):
            return name
    return None


def _claims(claim: _Claim, name: str, side: str) -> bool:
    bindings = claim.template.match(name)
    if bindings is None:
        return False
    if side == "sources":
        return not claim.rule.leaves(name, bindings)
    return not claim.rule.leaves_target(name, bindings) and _has_source(claim.rule, bindings)


def _has_source(rule: Rule, bindings: Bindings) -> bool:
    """Can a source be called so that the rule makes this target?"""
    try:
        for template in rule.sources:
            if template.holes <= bindings.keys():
                template.format(bindings)
    except TemplateError:
        return False
    return True


def _names(one: Template, other: Template, budget: Iterator[None]) -> Iterator[str]:
    """Names that both templates may match, the shortest first."""
    for literal, template in ((one, other), (other, one)):
        if not literal.variables:
            yield from [literal.prefix] * template(literal.prefix)
            return
    found = _common_names(_Machine(one), _Machine(other), budget)
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
    """The places within a template, and the characters that lead from one to the next."""

    def __init__(self, template: Template) -> None:
        self.tokens = template.tokens
        self.start: State = (0, -1, 0)

    def ends(self, state: State) -> bool:
        """May a name end here?"""
        token, _, character = state
        if token == len(self.tokens):
            return True
        rest = self.tokens[token + 1 :]
        return character > 0 and _alternatives(self.tokens[token]) is None and not rest

    def edges(self, state: State) -> list[tuple[str, State]]:
        """What a character may be here, and where it leads."""
        index, alternative, character = state
        if index == len(self.tokens):
            return []
        token = self.tokens[index]
        texts = _alternatives(token)
        if texts is None:
            again = [(_class(token), (index, -1, 1))]
            return again + (self.edges((index + 1, -1, 0)) if character else [])
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


def _alternatives(token: Token) -> tuple[str, ...] | None:
    """The texts that a token may be, where it is one of some."""
    if isinstance(token, Text):
        return (token.text,)
    if isinstance(token, Lookup):
        return tuple(token.table.entries.values())
    return token.choices if token.kind == "choice" else None


def _class(token: Token) -> str:
    """What each character of a hole is."""
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
