"""Findings in the formats that people, editors and build servers read.

`full` is for people and goes where the command says; the others go to stdout, with paths relative
to the repository and `/` between their parts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from converter import __version__
from converter.cli.output import hint, print_diagnostics, say, say_json
from converter.errors import Diagnostic, MappingError

Command = TypeVar("Command", bound=Callable[..., Any])

ANNOTATIONS = 10  # of a kind that GitHub shows of one step
_LEVELS = {"error": "error", "warning": "warning", "note": "notice"}
_GITLAB = {"error": "major", "warning": "minor", "note": "info"}
_NO_XML = "[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # so wide that it compiles slowly

_output_format_option = click.option(
    "--output-format",
    "output",
    type=click.Choice(["full", "concise", "json", "github", "gitlab", "junit", "sarif"]),
    default="full",
    show_default=True,
    help="How findings are printed.",
)


def report(
    diagnostics: Sequence[Diagnostic],
    style: str,
    files: Sequence[Path] = (),
    echo: Callable[[str], None] = say,
) -> None:
    """Print findings; `files` are all that were looked at, also those without any."""
    if style == "full":
        print_diagnostics(diagnostics, echo)
    elif style == "concise":
        _concise(diagnostics, echo)
    else:
        _STYLES[style](diagnostics, files)


def judging(command: Command) -> Command:
    """Give a command `--output-format`; the problems of a mapping are reported so, and end with 1.

    In any other style than `full` the findings are all that is on stdout, whatever `--format` says.
    """

    @wraps(command)
    def run(*, output: str, **options: Any) -> Any:
        try:
            return command(output=output, **options)
        except MappingError as error:
            if output == "full":
                raise
            report(error.diagnostics, output)
            return 1

    return cast("Command", _output_format_option(run))


def diagnostic_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """One finding's fields."""
    fields = ("code", "severity", "message", "line", "column", "end_column")
    facts = ("expected", "found", "hint", "tensor", "fix")
    path = diagnostic.path.as_posix() if diagnostic.path else None
    return {"file": path} | {name: getattr(diagnostic, name) for name in fields + facts}


def uri(path: Path) -> str:
    """The path from the repository's root, or the working folder's; whole when it lies outside."""
    root, full = _root(Path.cwd()), path.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()


@lru_cache(maxsize=8)
def _root(folder: Path) -> Path:
    folder = folder.resolve()
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)


def _text(each: Diagnostic) -> str:
    """The message and its facts, without place and code."""
    facts = (("expected", each.expected), ("found", each.found), ("help", each.hint))
    return each.message + "".join(f"\n{label}: {value}" for label, value in facts if value)


# ── one function a format ────────────────────────────────────────────────────────────────────


def _concise(diagnostics: Sequence[Diagnostic], echo: Callable[[str], None]) -> None:
    for each in diagnostics:
        echo(str(each).split("\n", 1)[0] + (f" ({each.hint})" if each.hint else ""))


def _json(diagnostics: Sequence[Diagnostic], files: Sequence[Path]) -> None:
    say_json(findings_json(diagnostics, files))


def findings_json(diagnostics: Sequence[Diagnostic], files: Sequence[Path]) -> dict[str, Any]:
    """Findings, and the files that were looked at, as one document."""
    found = Counter(each.severity for each in diagnostics)
    rows = [
        diagnostic_json(each) | {"file": uri(each.path) if each.path else None}
        for each in diagnostics
    ]
    return {
        "schema_version": 1,
        "converter": __version__,
        "files": [uri(path) for path in files],
        "errors": found["error"],
        "warnings": found["warning"],
        "diagnostics": rows,
    }


def _github(diagnostics: Sequence[Diagnostic], _: Sequence[Path]) -> None:
    """Annotations, as many as are shown; the log has everything."""
    print_diagnostics(diagnostics)
    written: Counter[str] = Counter()
    for each in diagnostics:
        written[each.severity] += 1
        if written[each.severity] <= ANNOTATIONS and each.severity != "note":
            say(f"::{_LEVELS[each.severity]} {_properties(each)}::{_escape(_text(each))}")
    rest = {kind: written[kind] - ANNOTATIONS for kind in ("error", "warning")}
    more = [f"{number} more {kind}s" for kind, number in rest.items() if number > 0]
    if written["note"]:
        more.append(f"{written['note']} notes")
    if more:
        say(f"::notice title=converter::{' and '.join(more)}: see the log")


def _properties(each: Diagnostic) -> str:
    place = {"title": f"converter {each.code}"}
    if each.path:
        place["file"] = uri(each.path)
    if each.line:
        place |= {"line": str(each.line), "col": str(each.column)}
        place["endColumn"] = str(max(each.end_column - 1, each.column))
    return ",".join(
        f"{key}={_escape(value).replace(':', '%3A').replace(',', '%2C')}"
        for key, value in place.items()
    )


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _gitlab(diagnostics: Sequence[Diagnostic], _: Sequence[Path]) -> None:
    """Code Quality, with a fingerprint that survives lines which move."""
    seen: Counter[str] = Counter()
    rows = []
    for each in diagnostics:
        path = uri(each.path) if each.path else "."
        print_ = _fingerprint(each, path, seen)
        rows.append(
            {
                "description": _text(each),
                "check_name": each.code,
                "fingerprint": print_,
                "severity": _GITLAB[each.severity],
                "location": {"path": path, "lines": {"begin": max(each.line, 1)}},
            }
        )
    say_json(rows)


def _fingerprint(each: Diagnostic, path: str, seen: Counter[str]) -> str:
    import hashlib

    text = json.dumps([path, each.code, each.message, each.tensor])
    seen[text] += 1
    return hashlib.sha256(f"{text}{seen[text]}".encode()).hexdigest()


def _junit(diagnostics: Sequence[Diagnostic], files: Sequence[Path]) -> None:
    """A suite a file; a case a code and line, so that a thousand tensors of one rule are one."""
    from xml.etree import ElementTree as ET

    groups: dict[str, dict[tuple[str, int], list[Diagnostic]]] = {uri(path): {} for path in files}
    for each in diagnostics:
        suite = groups.setdefault(uri(each.path) if each.path else "converter", {})
        suite.setdefault((each.code, each.line), []).append(each)
    root = ET.Element("testsuites", name="converter")
    failures = 0
    for name, cases in groups.items():
        suite_of = ET.SubElement(
            root, "testsuite", name=plain_xml(name), file=plain_xml(name), errors="0"
        )
        failed = sum(any(each.severity == "error" for each in case) for case in cases.values())
        suite_of.attrib |= {"tests": str(len(cases) or 1), "failures": str(failed)}
        failures += failed
        for (code, line), case in cases.items():
            _case(suite_of, name, f"{code} line {line}" if line else code, code, case)
        if not cases:
            ET.SubElement(
                suite_of, "testcase", name=plain_xml(name), classname="converter", time="0"
            )
    tests = sum(max(len(cases), 1) for cases in groups.values())
    root.attrib |= {"tests": str(tests), "failures": str(failures), "errors": "0"}
    say(xml_text(root))


def _case(suite: Any, path: str, name: str, code: str, found: Sequence[Diagnostic]) -> None:
    from xml.etree import ElementTree as ET

    case = ET.SubElement(suite, "testcase", name=name, classname=code, time="0")
    text = plain_xml(
        "\n\n".join(f"{path}:{each.line}:{each.column}: {_text(each)}" for each in found)
    )
    if any(each.severity == "error" for each in found):
        first = next(each for each in found if each.severity == "error")
        ET.SubElement(case, "failure", type=code, message=plain_xml(first.message)).text = text
    else:
        ET.SubElement(case, "system-out").text = text


def xml_text(root: Any) -> str:
    """The document, indented."""
    from xml.etree import ElementTree as ET

    ET.indent(root)
    return str(ET.tostring(root, "us-ascii", xml_declaration=True).decode())


def plain_xml(text: str) -> str:
    """The text without the characters that XML cannot hold at all."""
    return re.sub(_NO_XML, lambda found: f"\\x{ord(found[0]):02x}", text)


def _sarif(diagnostics: Sequence[Diagnostic], files: Sequence[Path]) -> None:
    from converter.language.codes import CODES

    codes = sorted({each.code for each in diagnostics})
    driver = {
        "name": "converter",
        "version": __version__,
        "rules": [
            {
                "id": code,
                "shortDescription": {"text": CODES[code].title},
                "fullDescription": {"text": CODES[code].about},
                "help": {"text": f"converter explain {code}"},
            }
            for code in codes
        ],
    }
    seen: Counter[str] = Counter()
    results = [_result(each, codes.index(each.code), seen) for each in diagnostics]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "artifacts": [{"location": _location(path)} for path in files],
        "results": results,
    }
    say_json(
        {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [run],
        }
    )


def _result(each: Diagnostic, index: int, seen: Counter[str]) -> dict[str, Any]:
    path = uri(each.path) if each.path else ""
    result: dict[str, Any] = {
        "ruleId": each.code,
        "ruleIndex": index,
        "level": each.severity,
        "message": {"text": _text(each)},
        "partialFingerprints": {"converter/v1": _fingerprint(each, path, seen)},
    }
    if each.path:
        where: dict[str, Any] = {"artifactLocation": _location(each.path)}
        if each.line:
            where["region"] = _region(each)
        result["locations"] = [{"physicalLocation": where}]
        if each.fix is not None:
            change = {"deletedRegion": _region(each), "insertedContent": {"text": each.fix}}
            changes = [{"artifactLocation": _location(each.path), "replacements": [change]}]
            result["fixes"] = [{"artifactChanges": changes}]
    return result


def _location(path: Path) -> dict[str, str]:
    from urllib.parse import quote

    near = uri(path)
    if Path(near).is_absolute():
        return {"uri": f"file://{quote(near)}"}
    return {"uri": quote(near), "uriBaseId": "%SRCROOT%"}


def _region(each: Diagnostic) -> dict[str, int]:
    end = max(each.end_column, each.column)
    return {"startLine": each.line, "startColumn": each.column, "endColumn": end}


_STYLES: dict[str, Callable[[Sequence[Diagnostic], Sequence[Path]], None]] = {
    "json": _json,
    "github": _github,
    "gitlab": _gitlab,
    "junit": _junit,
    "sarif": _sarif,
}


def verdict(diagnostics: Sequence[Diagnostic], noun: str) -> int:
    """The exit code; says so when there was nothing to find."""
    if not diagnostics:
        hint(f"{noun}: no findings")
    return int(any(each.severity == "error" for each in diagnostics))
