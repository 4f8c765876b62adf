"""What is wrong with a mapping file, and what could be better: the findings of `converter lint`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.errors import Diagnostic, IrreversibleError, MappingError
from converter.language import yaml
from converter.language.load import examine, read
from converter.language.names import words_in_braces
from converter.language.rules import Place, Rule, Rules

MODELINE = "# yaml-language-server: $schema="
SCHEMA = "schema.json"  # what editors read, beside the mappings or above them
ABOVE = 3  # folders in which it is looked for
_NO_NEWS = {
    "mapping",
    "name",
    "about",
    "source",
    "target",
    "tables",
    "sizes",
    "probes",
    "tests",
    "drop",
    "rules",
}


def lint(text: str, path: Path) -> list[Diagnostic]:
    """Every finding about a mapping file, by place; remarks on style where it has no errors."""
    try:
        document = read(text, path)
    except MappingError as error:
        return list(error.diagnostics)
    rules, found = examine(document, path)
    found += _modeline(text, path)
    if not any(finding.severity == "error" for finding in found):
        found += [*_unused(rules, document), *_covered(rules)]
        found += _one_way(_with_sizes(rules, document, path))
        if not rules.about:
            where = _key(rules, document, "mapping")
            found.append(_remark(where, "MAP130", "the mapping has no `about`"))
    return sorted(found, key=lambda finding: (finding.line, finding.column))


def _remark(place: Place, code: str, message: str, **facts: Any) -> Diagnostic:
    return place.diagnostic(code, message, severity="warning", **facts)


def _modeline(text: str, path: Path) -> list[Diagnostic]:
    """A first line leads editors to the schema, where there is one."""
    if MODELINE in text:
        return []
    folder = path.resolve().parent
    for parent in [folder, *folder.parents][:ABOVE]:
        if _is_schema(parent / SCHEMA):
            near = Path(os.path.relpath(parent / SCHEMA, folder)).as_posix()
            return [
                _remark(
                    Place(path, 1, 1, 1),
                    "MAP134",
                    "editors do not know that this is a mapping",
                    hint=f"begin with `{MODELINE}{near}`",
                    fix=f"{MODELINE}{near}\n",
                )
            ]
    return []


def _is_schema(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as stream:
            return '"title": "checkpoint-converter mapping"' in stream.read(500)
    except (OSError, UnicodeDecodeError):
        return False


def _unused(rules: Rules, document: yaml.Document) -> Iterator[Diagnostic]:
    """Sizes and tables that nothing names."""
    data = document.data
    rows = data.get("rules", ())
    used = _words({key: value for key, value in data.items() if key not in _NO_NEWS})
    used = used.union(*map(_ops_words, rows), words_in_braces(data))
    for name in data.get("sizes") or {}:
        if name not in used:
            where = _key(rules, document, "sizes", name)
            yield _remark(where, "MAP131", f"nothing names the size '{name}'")
    for index, rule in enumerate(rows):
        for name in rule.get("sizes") or {}:
            if name not in _ops_words(rule):
                where = _key(rules, document, "rules", index, "sizes", name)
                yield _remark(where, "MAP131", f"no op of this rule names the size '{name}'")
    looked_up = {name for text in yaml.texts(data) for name in re.findall(r"\{(\w+)\[", text)}
    for name in data.get("tables") or {}:
        if name not in looked_up:
            where = _key(rules, document, "tables", name)
            yield _remark(where, "MAP132", f"nothing looks the table '{name}' up")


def _ops_words(rule: Mapping[str, Any]) -> set[str]:
    """Every word in the ops of a rule, those of single sources and targets too."""
    sides = (rule.get(side) for side in ("source", "target"))
    branches = [each for side in sides for each in (side if isinstance(side, list) else [side])]
    owners = [rule, *(each for each in branches if isinstance(each, dict))]
    return set[str]().union(*(_words(owner.get("ops")) for owner in owners))


def _words(data: Any) -> set[str]:
    return {word for text in yaml.texts(data) for word in re.findall(r"\w+", text)}


def _key(rules: Rules, document: yaml.Document, *path: str | int) -> Place:
    span = document.span(path, key=True)
    return Place(rules.path, span.line, span.column, span.end)


def _own(rules: Rules) -> Iterator[Rule]:
    """The rules that stand in this file."""
    return (rule for rule in rules.rules if rule.place.path == rules.path)


def _with_sizes(rules: Rules, document: yaml.Document, path: Path) -> Rules:
    """The rules with a number for each size that is only known when they are used."""
    sizes = document.data.get("sizes") or {}
    unknown = {name: 2 for name, size in sizes.items() if size is None}
    return examine(document, path, unknown)[0] if unknown else rules


def _one_way(rules: Rules) -> Iterator[Diagnostic]:
    """Rules that cannot go back; one that is lossy, or has an `about`, is meant to be so."""
    for rule in _own(rules):
        try:
            if not (rule.about or any(op.exactness == "lossy" for op in rule.ops)):
                rule.inverse()
        except IrreversibleError as error:
            hint = error.hint or "if it is meant to be so, say why: `about: ...`"
            yield _remark(rule.place, "MAP120", f"no way back: {error.message}", hint=hint)


def _covered(rules: Rules) -> Iterator[Diagnostic]:
    """Rules of one name that do what another does which leaves the name to them."""
    single = [rule for rule in _own(rules) if len(rule.sources) == len(rule.targets) == 1]
    general = [rule for rule in single if rule.sources[0].holes and rule.source_except]
    for rule in single:
        names = rule.sources[0].text, rule.targets[0].text
        if rule.sources[0].holes or rule.targets[0].holes:
            continue
        for other in general:
            if other.ops == rule.ops and _would_make(other, *names):
                yield _remark(
                    rule.place,
                    "MAP133",
                    f"the rule at line {other.place.line} would do the same",
                    hint=f"remove this rule, and '{names[0]}' from the `except` there",
                )


def _would_make(rule: Rule, source: str, target: str) -> bool:
    """Is it only by its `except` that a rule does not make one name of another?"""
    bindings = rule.sources[0].match(source)
    if bindings is None or not rule.targets[0].holes <= bindings.keys():
        return False
    named = any(selector.text in (source, target) for selector in rule.source_except)
    made = rule.targets[0].match(target)
    return named and made is not None and made.items() <= bindings.items()
