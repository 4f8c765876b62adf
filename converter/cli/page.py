"""A report as one page: the review of a plan, and what came of it.

The page is whole in itself: no script, nothing from the network, light and dark.  Names come from
files that others wrote; whatever is put into an element is escaped there, and nowhere else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any

from converter.cli.output import count, size

FEW = 12  # rows that are shown without being asked for
HIDDEN = {  # characters that act instead of being seen
    code: f"\\u{code:04x}"
    for code in chain(
        range(0x20),
        range(0x7F, 0xA0),
        range(0x200B, 0x2010),
        range(0x2028, 0x202F),
        range(0x2060, 0x2070),
        (0xFEFF,),
    )
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #777; --wrong: #b3261e; --fine: #19692c;
  --doubt: #8a5a00; --paper: #fff; --ink: #1b1b1b; --soft: #f4f4f2; }
@media (prefers-color-scheme: dark) { :root { --quiet: #999; --wrong: #ff8a80; --fine: #7fd494;
  --doubt: #f0c060; --paper: #161618; --ink: #e4e4e4; --soft: #212124; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; unicode-bidi: isolate; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: normal; }
summary { cursor: pointer; color: var(--quiet); } details { margin: .3rem 0; }
.rule { background: var(--soft); border-radius: .4rem; padding: .1rem .8rem .5rem;
  margin: .6rem 0; }
.quiet { color: var(--quiet); } .wrong { color: var(--wrong); } .fine { color: var(--fine); }
.doubt { color: var(--doubt); }
"""
MOODS = {
    **dict.fromkeys(("converted", "planned", "equal", "exact"), "fine"),
    **dict.fromkeys(("failed", "rejected", "different", "error", "lossy"), "wrong"),
    **dict.fromkeys(("running", "warning", "rounding"), "doubt"),
}

Row = Sequence[object]


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *content: object, **attributes: str) -> Html:
    """An element; whatever is no markup is escaped."""
    given = "".join(f' {key.rstrip("_")}="{escape(text)}"' for key, text in attributes.items())
    inner = "".join(
        part if isinstance(part, Html) else escape(str(part).translate(HIDDEN)) for part in content
    )
    return Html(f"<{name}{given}>{inner}</{name}>")


def code(text: object) -> Html:
    """A name, a spec or an op, as it is written."""
    return element("code", text)


def mood(word: object, shown: str = "") -> Html:
    """A verdict, coloured."""
    return element("span", shown or word, class_=MOODS.get(str(word), "quiet"))


def table(head: Sequence[str], rows: Iterable[Row]) -> Html:
    """A table that scrolls by itself when it is wide."""
    top = element("tr", *(element("th", text) for text in head))
    body = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("div", element("table", top, *body), class_="wide")


def listed(title: str, head: Sequence[str], rows: Sequence[Row]) -> Html:
    """A table behind its title when it is long; nothing when it is empty."""
    if not rows:
        return Html()
    title = f"{title}: {len(rows)}"
    if len(rows) <= FEW:
        return Html(element("h3", title) + table(head, rows))
    return element("details", element("summary", title), table(head, rows))


def page(record: Mapping[str, Any]) -> str:
    """The page of a report, after its first line."""
    sides = " → ".join(str(record[key]) for key in ("source", "target") if key in record)
    title = f"converter {record['command']}: {sides}"
    plans = record.get("plans", ())
    differences = record.get("tensors")
    parts = [
        element("h1", title),
        summary(record),
        findings(record.get("diagnostics", ())),
        compared(differences) if isinstance(differences, list) else Html(),
        unproved(plans),
        *(review(plan) for plan in plans),
        provenance(record),
    ]
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return element("html", head, element("body", *parts), lang="en") + "\n"


def summary(record: Mapping[str, Any]) -> Html:
    """How it ended, and what was asked for."""
    rows: list[Row] = [("status", mood(record["status"]))]
    if "error" in record:
        rows.append(("error", element("code", record["error"], class_="wrong")))
    rows += [(key, code(record[key])) for key in ("source", "target", "format") if key in record]
    if isinstance(record.get("tensors"), int):
        rows.append(("tensors", f"{record['tensors']}, {size(record['nbytes'])}"))
    if record.get("options"):
        rows.append(("options", code(in_json(record["options"]))))
    for plan in record.get("plans", ()):
        for side, contract in plan["contracts"].items():
            if contract:
                rows.append((f"contract of the {side}", code(in_json(contract))))
    rows.append(("version", f"converter {record['converter']}"))
    return table(("", ""), rows)


def in_json(data: object) -> str:
    """Data in one line."""
    return json.dumps(data, ensure_ascii=False)


def findings(diagnostics: Sequence[Mapping[str, Any]]) -> Html:
    """What is wrong, with its place: unmatched names among them."""
    if not diagnostics:
        return Html()
    rows = [
        (
            mood(each["severity"], f"{each['severity']} {each['code']}"),
            code(f"{each['file']}:{each['line']}" if each["line"] else each["file"] or ""),
            element("div", each["message"], *facts(each)),
        )
        for each in diagnostics
    ]
    return Html(element("h2", "Findings") + table(("", "where", "what"), rows))


def facts(each: Mapping[str, Any]) -> Iterator[Html]:
    """What a finding says beside its message."""
    for key in ("expected", "found", "hint"):
        if each.get(key):
            yield element("div", f"{key}: ", code(each[key]), class_="quiet")


def compared(tensors: Sequence[Mapping[str, Any]]) -> Html:
    """What differs, and what would make it equal."""
    wrong = [row for row in tensors if row["status"] != "equal"]
    equal = count(len(tensors) - len(wrong), "tensor")
    title = element("h2", "Values")
    if not wrong:
        return Html(title + element("p", f"{equal}, all equal", class_="fine"))
    first, second = ("expected", "found") if "expected" in wrong[0] else ("first", "second")
    rows = [
        (
            code(row["name"]),
            row["status"],
            code(row[first] or "nothing"),
            code(row[second] or "nothing"),
            extent(row),
            code(row["explanation"]["text"]) if row["explanation"] else "",
        )
        for row in wrong
    ]
    head = ("tensor", "differs in", first, second, "by", "equal after")
    words = f"{count(len(wrong), 'tensor')} differ, {equal} equal"
    return Html(title + element("p", words, class_="wrong") + table(head, rows))


def extent(row: Mapping[str, Any]) -> str:
    """How many values differ, by how much, and where the first one is."""
    if row["status"] != "values":
        return ""
    if row["index"] is None:
        return f"{row['count']} values"
    gap = f"{row['max_abs']:.3g}" if isinstance(row["max_abs"], float) else row["max_abs"]
    return f"{row['count']} values, by {gap} at most, first at {row['index']}"


def unproved(plans: Sequence[Mapping[str, Any]]) -> Html:
    """What no shape can confirm, and the steps that are not exact."""
    steps = [step for plan in plans for step in plan["steps"]]
    doubts = [
        (code(step["target"]), "; ".join(step["unconfirmed"]), proof(step.get("proved_by")))
        for step in sorted(steps, key=lambda step: step.get("proved_by") is not None)
        if step["unconfirmed"]
    ]
    changed = [
        (code(step["target"]), mood(step["exactness"]))
        for step in steps
        if step["exactness"] != "exact"
    ]
    if not (doubts or changed):
        return Html()
    return Html(
        element("h2", "Not proved by shapes")
        + listed("shapes cannot confirm", ("target", "why", ""), doubts)
        + listed("not exact", ("target", ""), changed)
    )


def proof(probe: str | None) -> Html:
    """The probe that proved a step, if one did."""
    if probe is None:
        return element("span", "unproved", class_="doubt")
    return element("span", "proved by ", code(probe), class_="fine")


def review(plan: Mapping[str, Any]) -> Html:
    """One mapping's plan, rule by rule."""
    rules = plan["rules"]
    steps: list[list[Mapping[str, Any]]] = [[] for _ in rules]
    for step in plan["steps"]:
        steps[step["nth"]].append(step)
    used = [rule_of(rule, own) for rule, own in zip(rules, steps, strict=True) if own]
    idle = [
        (code(rule["at"]), code(rule["text"]))
        for rule, own in zip(rules, steps, strict=True)
        if not own
    ]
    dropped = [(code(row["name"]), row["because"]) for row in plan["dropped"]]
    return Html(
        element("h2", f"Mapping {plan['mapping']}" if plan["mapping"] else "Mapping")
        + "".join(used)
        + listed("rules that match nothing", ("where", "rule"), idle)
        + listed("dropped", ("source", "because"), dropped)
        + listed("left alone", ("source",), [(code(name),) for name in plan["left"]])
    )


def rule_of(rule: Mapping[str, str], steps: Sequence[Mapping[str, Any]]) -> Html:
    """A rule: where it stands, the ways that shapes take through it, and every tensor."""
    alike: dict[tuple[str, ...], Html] = {}  # layers repeat
    ways = Counter(
        alike.get(key) or alike.setdefault(key, way_of(step))
        for step in steps
        for key in [(*step["source_specs"], str(step["shape"]))]
    )
    names = [(code(sources_of(step)), code(step["target"])) for step in steps]
    return element(
        "div",
        element("h3", code(rule["text"]), " ", element("span", rule["at"], class_="quiet")),
        element("p", rule["about"], class_="quiet") if rule["about"] else "",
        *(
            element("div", way, element("span", f"  {count(times, 'tensor')}", class_="quiet"))
            for way, times in ways.items()
        ),
        listed("tensors", ("source", "target"), names),
        class_="rule",
    )


def sources_of(row: Mapping[str, Any]) -> str:
    """What something is made of."""
    return " + ".join(row["sources"]) or "(constant)"


def way_of(step: Mapping[str, Any]) -> Html:
    """Source specs → op → specs after it → ... → target."""
    parts = [code(" + ".join(step["source_specs"]) or "constant")]
    for op, specs in zip(step["ops"], step["after"], strict=True):
        ((word, value),) = op.items()
        text = value if isinstance(value, str) else in_json(value)
        parts += [
            Html(" → "),
            element("b", code(f"{word}: {text}")),
            Html(" → "),
            code(", ".join(specs)),
        ]
    if not step["ops"]:
        spec = f"{step['dtype']} {step['shape']}"
        parts += [Html(" → "), code(spec)]
    return Html("".join(parts))


def provenance(record: Mapping[str, Any]) -> Html:
    """Digests of what went in and came out, and the lineage of every tensor."""
    files = [
        (kind, code(row["name"]), size(row["nbytes"]), code(row.get("sha256", "")))
        for kind, key in (("input", "inputs"), ("output", "outputs"))
        for row in record.get(key, ())
    ]
    mappings = [
        ("mapping", code(row["name"]), "", code(row["sha256"]))
        for each in record.get("mappings", ())
        for row in each["files"]
    ]
    lineage = [
        (
            code(row["name"]),
            code(f"{row['dtype']} {row['shape']}"),
            code(sources_of(row)),
            mood(row["exactness"]),
            code(row["sha256"]),
        )
        for row in record.get("lineage", ())
    ]
    if not (files or mappings):
        return Html()
    return Html(
        element("h2", "Provenance")
        + table(("", "file", "size", "SHA-256"), [*mappings, *files])
        + listed("tensors", ("target", "spec", "made of", "", "SHA-256"), lineage)
    )
