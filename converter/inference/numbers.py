"""Names that differ in their numbers → templates: with holes, offsets or tables."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from converter.inference.drafts import Draft, Table, Tables, escaped, literal, sound
from converter.inference.match import Match
from converter.language import names as templates

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
MOST_FOLDED = 3  # rules in place of a table of texts
SPLITS = 2  # numbers by which names that follow no rule are told apart


def skeleton(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A name's texts between its numbers, and the numbers."""
    parts = _NUMBER.split(name.replace("{", "{{").replace("}", "}}"))
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))


def folded(matches: Sequence[Match], tables: Tables) -> list[Draft]:
    """Rules for names that differ in numbers only: a few for each text around the numbers."""
    groups: dict[tuple[object, ...], dict[object, list[Match]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for match in matches:
        ours, theirs = (
            tuple(skeleton(name)[0] for name in side) for side in (match.sources, match.targets)
        )
        groups[match.key, ours][theirs].append(match)
    drafts: list[Draft] = []
    for family in groups.values():
        trial = Tables(dict(tables.entries))
        found = [draft for group in family.values() for draft in _folds(group, trial)]
        tabled = _tabled([m for group in family.values() for m in group], tables)
        if tabled and len(found) > MOST_FOLDED:
            found = [tabled]
        else:
            tables.entries = trial.entries
        drafts += found
    return drafts


def _fold(group: Sequence[Match], tables: Tables) -> Draft | None:
    """One rule for matches whose names differ in numbers only; None when they follow no rule."""
    first = group[0]
    if len(group) == 1:
        return literal([first])[0]
    for back in (False, True):  # a table is looked up by the holes of the side with more of them
        trial = Tables(dict(tables.entries))
        sides = [(*m.targets, *m.sources) if back else (*m.sources, *m.targets) for m in group]
        count = len(first.targets if back else first.sources)
        texts = _templates(sides, count, trial)
        if texts is None:
            continue
        ours, theirs = texts[:count], texts[count:]
        sources, targets = (theirs, ours) if back else (ours, theirs)
        draft = Draft(sources, targets, first.ops, first.note, tuple(group))
        if sound(draft, trial):
            tables.entries = trial.entries
            return draft
    return None


def _folds(group: Sequence[Match], tables: Tables, depth: int = SPLITS) -> list[Draft]:
    """Few rules for matches whose names differ in numbers: apart where one number is another."""
    draft = _fold(group, tables)
    if draft or not depth:
        return [draft] if draft else literal(group)
    rows = [_numbers(match) for match in group]
    best, best_tables = literal(group), tables.entries
    for column in zip(*rows, strict=True):
        parts: dict[int, list[Match]] = defaultdict(list)
        for value, match in zip(column, group, strict=True):
            parts[value].append(match)
        if 1 < len(parts) < len(best):
            trial = Tables(dict(tables.entries))
            drafts = [d for part in parts.values() for d in _folds(part, trial, depth - 1)]
            if len(drafts) < len(best):
                best, best_tables = drafts, trial.entries
    tables.entries = best_tables
    return best


def _tabled(matches: Sequence[Match], tables: Tables) -> Draft | None:
    """One rule whose number is looked up in a table of texts; None when there are more numbers."""
    first = matches[0]
    found = _templates([match.sources for match in matches], 1, Tables())
    holes = set(re.findall(r"(?<!\{)\{([^{}]*)\}", found[0] if found else ""))
    if found is None or len(holes) != 1 or len(first.sources) > 1 or len(first.targets) > 1:
        return None
    (hole,) = holes
    template = templates.parse(found, {})[0]
    numbers = [(template.match(match.sources[0]) or {}).get(hole) for match in matches]
    targets = [escaped(match.targets[0]) for match in matches]
    before, after = _common_segments(targets)
    words = [text[len(before) : len(text) - len(after)] for text in targets]
    table: Table = {
        (n,): word for n, word in zip(numbers, words, strict=True) if isinstance(n, int)
    }
    if len(set(table.values())) < len(matches) or any(set("{}") & set(word) for word in words):
        return None
    name = tables.name("layer", table)
    target = f"{before}{{{name}[{hole}]}}{after}"
    draft = Draft(found, (target,), first.ops, first.note, tuple(matches))
    return draft if sound(draft, tables) else None


def _numbers(match: Match) -> tuple[int, ...]:
    """The numbers in all names of a match."""
    return tuple(n for name in (*match.sources, *match.targets) for n in skeleton(name)[1])


def _templates(
    sides: Sequence[tuple[str, ...]], count: int, tables: Tables
) -> tuple[str, ...] | None:
    """The templates of names that differ in numbers; the first `count` introduce the holes."""
    rows = [[skeleton(name) for name in side] for side in sides]
    columns = [list(zip(*(row[k][1] for row in rows), strict=True)) for k in range(len(rows[0]))]
    holes: dict[str, tuple[int, ...]] = {}
    done: list[str] = []
    for nth, ((parts, _), numbers) in enumerate(zip(rows[0], columns, strict=True)):
        text = parts[0]
        for values, before, after in zip(numbers, parts, parts[1:], strict=False):
            known = None if len(set(values)) == 1 else _known(values, holes)
            if len(set(values)) == 1:
                text += f"{values[0]}{after}"
                continue
            if known is None and nth < count:
                known = _new_hole(before, holes)
                holes[known] = values
            known = known or _looked_up(values, before, holes, tables)
            if known is None:
                return None
            text += f"{{{known}}}{after}"
        done.append(text)
    return tuple(done)


def _known(values: tuple[int, ...], holes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A hole with these values, or with an offset from them."""
    for hole, others in holes.items():
        gaps = {value - other for value, other in zip(values, others, strict=True)}
        if len(gaps) == 1:
            gap = gaps.pop()
            return f"{hole}{gap:+d}" if gap else hole
    return None


def _new_hole(before: str, holes: Mapping[str, object]) -> str:
    """A name for a hole: the first letter of the word before it, if that is free."""
    word = re.sub(r"[^a-z]", "", re.split("[/.]", before.lower())[-1] or before.lower())
    letters = [*word[:1], *"ijklmnabcdefg"]
    return next((str(letter) for letter in letters if letter not in holes), f"x{len(holes)}")


def _looked_up(
    values: tuple[int, ...], before: str, holes: Mapping[str, tuple[int, ...]], tables: Tables
) -> str | None:
    """A table from some of the holes to these values, one to one."""
    for width in (1, 2, 3):
        for keys in itertools.combinations(holes, width):
            table: Table = {}
            rows = list(zip(*(holes[key] for key in keys), strict=True))
            if all(table.setdefault(r, v) == v for r, v in zip(rows, values, strict=True)) and len(
                set(table.values())
            ) == len(table):
                words = re.findall("[A-Za-z]+", before)
                name = tables.name(words[-1].lower() if words else "table", table)
                return f"{name}[{','.join(keys)}]"
    return None


def _common_segments(texts: Sequence[str]) -> tuple[str, str]:
    """What texts begin and end with, all of them, in whole segments."""
    before = _common_start(texts)
    after = _common_start([text[len(before) :][::-1] for text in texts])[::-1]
    start = 1 + max(map(before.rfind, "/."))
    stop = min((k for k in map(after.find, "/.:") if k >= 0), default=len(after))
    return before[:start], after[stop:]


def _common_start(texts: Sequence[str]) -> str:
    columns = zip(*texts, strict=False)
    return "".join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns))
