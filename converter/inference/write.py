"""Drafts → the text of a mapping file, as a person would write it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.inference.drafts import Draft, Tables
from converter.inference.match import ancestors
from converter.language.groups import GROUPS
from converter.language.names import parse_selector
from converter.tensors import TensorSpec, dtype_name

WORDS = {"true", "false", "null", "yes", "no", "on", "off"}


@dataclass
class Draftbook:
    """Everything that a mapping will say."""

    about: str
    rules: list[Draft] = field(default_factory=list)
    makes: list[tuple[Draft, TensorSpec, float | int, bool]] = field(default_factory=list)
    drops: list[tuple[str, str]] = field(default_factory=list)  # selector, reason
    groups: list[str] = field(default_factory=list)
    tables: Tables = field(default_factory=Tables)
    open: Mapping[str, str] = field(default_factory=dict)

    def text(self, sources: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]) -> str:
        """The YAML."""
        parts = [[f"mapping: 1\nabout: {quoted(self.about)}"], self.table_lines()]
        rules = [
            _rule(draft, sources, targets) for draft in sorted(self.rules, key=in_order(sources))
        ]
        parts.append(["rules:" if rules else "rules: []", *rules])
        if self.drops or self.groups:
            drops = [
                f"  - {{source: {json.dumps(s)}, because: {json.dumps(b)}}}" for s, b in self.drops
            ]
            parts.append(["drop:", *drops, *(f"  - {{group: {group}}}" for group in self.groups)])
        if self.makes:
            parts.append(["make:", *(_make(*make) for make in self.makes)])
        if self.open:
            lines = [f"#   {name} ({targets[name]}): {why}" for name, why in self.open.items()]
            parts.append(["# Not found, so this mapping is not complete:", *lines])
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def table_lines(self) -> list[str]:
        """The tables, used ones only."""
        drafts = [*self.rules, *(make[0] for make in self.makes)]
        used = " ".join(text for draft in drafts for text in (*draft.sources, *draft.targets))
        lines = ["tables:"]
        for name, table in self.tables.entries.items():
            if f"{{{name}[" in used:
                lines.append(f"  {name}:")
                rows = sorted(table.items())
                lines += [f"    {','.join(map(str, key))}: {_entry(value)}" for key, value in rows]
        return lines if len(lines) > 1 else []


def _entry(value: int | str) -> str:
    return quoted(value) if isinstance(value, str) else str(value)


def in_order(sources: Mapping[str, TensorSpec]) -> Callable[[Draft], int]:
    """The key by which rules stand in the order of the source's tensors."""
    places = {name: k for k, name in enumerate(sources)}
    return lambda draft: min(
        (places.get(n, 0) for m in draft.matches for n in m.sources), default=0
    )


def quoted(text: str) -> str:
    """A scalar of block style, in quotes where it needs them."""
    plain = (
        re.fullmatch(r"[A-Za-z_][^#\"'\n]*", text) and ": " not in text and not text.endswith(":")
    )
    return (
        text if plain and text.strip() == text and text.lower() not in WORDS else json.dumps(text)
    )


def _side(names: Sequence[str]) -> str:
    return quoted(names[0]) if len(names) == 1 else json.dumps(list(names))


def _sources(draft: Draft) -> str:
    negated = draft.matches[0].negated
    if not negated:
        return _side(draft.sources)
    sources = [
        {"name": name, "ops": [{"negate": {}}]} if k in negated else name
        for k, name in enumerate(draft.sources)
    ]
    return json.dumps(sources)


def _rule(
    draft: Draft, sources: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]
) -> str:
    lines = [f"  # {note}" for note in _notes(draft, sources, targets)]
    lines += [f"  - source: {_sources(draft)}", f"    target: {_side(draft.targets)}"]
    if draft.exclude:
        lines.append(f"    except: {json.dumps(list(draft.exclude))}")
    sizes: dict[str, int] = {}
    ops = []
    for op in draft.ops:
        ((word, value),) = op.items()
        if word == "rearrange" and isinstance(value, dict):
            sizes |= value["sizes"]
            value = value["pattern"]
        text = value if isinstance(value, str) and quoted(value) == value else _flow(value)
        if word == "rearrange" and not text.startswith('"') and not re.match(r"[A-Za-z(0-9]", text):
            text = json.dumps(value)
        ops.append(f"      - {word}: {text}")
    if any("sum" in op for op in draft.ops):
        lines.append("    lossy: true")
    if sizes:
        lines.append(f"    sizes: {{{', '.join(f'{k}: {v}' for k, v in sizes.items())}}}")
    if ops:
        lines += ["    ops:", *ops]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, str) and re.match(r"\(|[0-9]", value):
        return value
    return json.dumps(value)


def _notes(
    draft: Draft, sources: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]
) -> Iterable[str]:
    if draft.note:
        yield draft.note
    square = [
        m.sources[0]
        for m in draft.matches
        if m.ops and sources[m.sources[0]].shape == targets[m.targets[0]].shape
    ]
    if square and not draft.note:
        yield f"shapes cannot confirm {len(square)} of these; the values do"


def _make(draft: Draft, spec: TensorSpec, value: float, shaped: bool) -> str:
    fields = {"target": json.dumps(draft.targets[0])}
    if draft.sources:
        fields["each"] = json.dumps(draft.sources[0])
    if dtype_name(spec.dtype) != "float32":
        fields["dtype"] = dtype_name(spec.dtype)
    if shaped:
        fields["shape"] = str(list(spec.shape))
    fields["fill"] = repr(value)
    fields["because"] = json.dumps(draft.note) if draft.note else "the source has none"
    return f"  - {{{', '.join(f'{k}: {v}' for k, v in fields.items())}}}"


def drops(left: Sequence[str], used: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """What becomes of sources that nothing takes: selectors with reasons, and shipped groups."""
    rest, groups = list(left), []
    for group, (_, patterns) in GROUPS.items():
        fits = [parse_selector(pattern) for pattern in patterns]
        taken = [name for name in rest if any(fit(name) for fit in fits)]
        if taken and not any(fit(name) for fit in fits for name in used):
            groups.append(group)
            rest = [name for name in rest if name not in taken]
    alike: dict[str, list[str]] = defaultdict(list)
    for selector in _folders(rest, used):
        alike[re.sub(r"(?<![0-9])[0-9]+(?![0-9])", "{i}", selector)].append(selector)
    selectors: list[str] = []
    for selector, some in alike.items():
        whole = len(some) > 1 and not any(map(parse_selector(selector), used))
        selectors += [selector] if whole else some
    return [(s, "nothing in the target holds its values") for s in selectors], groups


def _folders(left: Sequence[str], used: set[str]) -> list[str]:
    """Selectors of names: the largest folders without a name that is used, or the name."""
    kept = {folder for name in used for folder in ancestors(name)}
    found: dict[str, list[str]] = defaultdict(list)
    for name in left:
        folder = next((folder for folder in ancestors(name) if folder not in kept), name)
        found[f"{folder}{name[len(folder)]}**" if folder != name else name].append(name)
    return [names[0] if len(names) == 1 else selector for selector, names in found.items()]
