"""How a batch ended, for people, build servers and programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli.output import count, hint, say, say_json, size
from converter.cli.reports import findings_json, plain_xml, report, uri, xml_text
from converter.errors import Diagnostic

if TYPE_CHECKING:
    from converter.batch.quick import Outcome

ORDER = ("converted", "planned", "up to date", "failed", "skipped")
MAX_SUMMARY = 1 << 19  # bytes of a step's summary; GitHub shows none that is longer than 1 MiB
_MARKS = {"failed": "❌", "skipped": "⏭️"}


def conclude(
    manifest: Path,
    ended: Sequence[Outcome],
    findings: Sequence[Diagnostic],
    style: str,
) -> int:
    """Report everything in this style; the exit code."""
    found = list(dict.fromkeys((*findings, *(each for o in ended for each in o.diagnostics))))
    files = dict.fromkeys([manifest, *(each.path for each in found if each.path)])
    if style == "json":
        rows = [_row(outcome) for outcome in ended]
        say_json(findings_json(found, list(files)) | {"entries": rows})
    elif style == "junit":
        _junit(manifest, ended, findings)
    else:
        report(found, style, list(files))
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        _summarise(Path(os.environ["GITHUB_STEP_SUMMARY"]), manifest, ended, found)
    hint(_line(ended))
    wrong = any(outcome.status in ("failed", "skipped") for outcome in ended)
    return int(wrong or any(each.severity == "error" for each in found))


def _line(outcomes: Sequence[Outcome]) -> str:
    kinds: Counter[str] = Counter(outcome.status for outcome in outcomes)
    parts = [f"{kinds[kind]} {kind}" for kind in ORDER if kinds[kind]]
    return f"{len(outcomes)} {'entry' if len(outcomes) == 1 else 'entries'}: {', '.join(parts)}"


def _row(outcome: Outcome) -> dict[str, Any]:
    """One entry for programs."""
    entry = outcome.entry
    return {
        "name": entry.name,
        "status": outcome.status.replace(" ", "-"),
        "why": outcome.why,
        "line": entry.place.line,
        "source": str(entry.opens),
        "target": str(entry.target),
        "needs": list(entry.needs),
        **outcome.facts,
        "diagnostics": findings_json(outcome.diagnostics, [])["diagnostics"],
    }


def _junit(manifest: Path, outcomes: Sequence[Outcome], findings: Sequence[Diagnostic]) -> None:
    """A suite for the manifest, a case for each entry."""
    from xml.etree import ElementTree as ET

    place = plain_xml(uri(manifest))
    root = ET.Element("testsuites", name="converter batch")
    suite = ET.SubElement(root, "testsuite", name=place, file=place)
    for outcome in outcomes:
        seconds = str(outcome.facts.get("seconds", 0))
        name = plain_xml(outcome.entry.name)
        case = ET.SubElement(
            suite, "testcase", name=name, classname="converter batch", time=seconds
        )
        if outcome.status == "failed":
            _failure(case, outcome.diagnostics)
        elif outcome.status == "skipped":
            ET.SubElement(case, "skipped", message=plain_xml(outcome.why))
        else:
            ET.SubElement(case, "system-out").text = outcome.status
    if findings:
        case = ET.SubElement(suite, "testcase", name="lock", classname="converter batch", time="0")
        _failure(case, findings)
    counted = {"tests": "testcase", "failures": "failure", "skipped": "skipped"}
    numbers = {key: str(len(list(suite.iter(tag)))) for key, tag in counted.items()}
    suite.attrib |= numbers | {"errors": "0"}
    root.attrib |= {key: numbers[key] for key in ("tests", "failures")} | {"errors": "0"}
    say(xml_text(root))


def _failure(case: Any, found: Sequence[Diagnostic]) -> None:
    from xml.etree import ElementTree as ET

    first = next((each for each in found if each.severity == "error"), found[0])
    failure = ET.SubElement(case, "failure", type=first.code, message=plain_xml(first.message))
    failure.text = plain_xml("\n\n".join(map(str, found)))


def _summarise(
    path: Path, manifest: Path, outcomes: Sequence[Outcome], found: Sequence[Diagnostic]
) -> None:
    """Append a table to the summary of a step of GitHub's, as much of it as is shown."""
    lines = [f"### converter batch {_cell(uri(manifest))}", "", _line(outcomes), ""]
    lines += ["| | entry | status | tensors | size | why |", "|---|---|---|---:|---:|---|"]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.status not in _MARKS):
        facts, mark = outcome.facts, _MARKS.get(outcome.status, "✅")
        numbers = (str(facts["tensors"]), size(facts["nbytes"])) if facts else ("", "")
        why = outcome.diagnostics[0].message if outcome.diagnostics else outcome.why
        cells = (mark, _cell(outcome.entry.name), outcome.status, *numbers, _cell(why))
        lines.append(f"| {' | '.join(cells)} |")
    if found:
        lines += ["", f"{count(len(found), 'finding')}: see the log", ""]
    text = "\n".join(lines) + "\n"
    if len(text.encode()) > MAX_SUMMARY:
        text = text.encode()[:MAX_SUMMARY].decode(errors="ignore").rpartition("\n")[0] + "\n\n…\n"
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        hint(f"the summary of the step cannot be written: {error.strerror}: {path}")


def _cell(text: str) -> str:
    """A text as it looks like itself in a cell of a table."""
    line = text.split("\n", 1)[0][:300]
    for char in "\\`*_{}[]<>|&#!~":
        line = line.replace(char, f"\\{char}" if char not in "<>&" else f"&#{ord(char)};")
    return line
