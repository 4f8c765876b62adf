"""The schema of mapping files: what it takes and refuses, and what editors make of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from converter.language import yaml
from converter.language.lint import MODELINE
from converter.language.load import shipped, shipped_names
from converter.language.schema import schema
from converter.ops import OPS
from tests.cli.test_explain import CODES, mapping
from tests.test_docs import OPS_TABLE

RULE = "mapping: 1\nrules:\n  - source: a\n    target: b\n"


@pytest.fixture(scope="module")
def validator():
    wanted = schema()
    kind = jsonschema.validators.validator_for(wanted)
    assert kind is jsonschema.Draft7Validator
    kind.check_schema(wanted)
    return kind(wanted)


def test_the_shipped_file_is_current(converter):
    """`converter schema -o mappings/schema.json --overwrite` makes it so."""
    text = (shipped() / "schema.json").read_text(encoding="utf-8")
    assert converter("schema").out == text


def test_it_has_no_word_that_draft_07_lacks():
    words = set(keys(schema()))
    assert not words & {"$defs", "prefixItems", "unevaluatedProperties", "dependentRequired"}


def keys(node) -> Iterator[str]:
    if isinstance(node, dict):
        yield from node
        for key, value in node.items():
            yield from keys(value.values() if key in ("properties", "definitions") else value)
    elif isinstance(node, list) or hasattr(node, "mapping"):
        for item in node:
            yield from keys(item)


@pytest.mark.parametrize("name", shipped_names())
def test_it_takes_the_shipped_mappings(name, validator):
    text = (shipped() / f"{name}.yaml").read_text(encoding="utf-8")
    validator.validate(yaml.load(text).data)
    assert text.startswith(f"{MODELINE}../schema.json\n"), "editors look there"


@pytest.mark.parametrize("row", OPS_TABLE, ids=lambda row: row[0].strip("`"))
def test_it_takes_every_op(row, validator):
    validator.validate(yaml.load(RULE + f"    ops:\n      - {row[0].strip('`')}\n").data)


@pytest.mark.parametrize("code", [c for c in CODES if c.startswith("MAP") and c > "MAP001"])
def test_it_takes_what_is_right(code, validator):
    text = CODES[code].good
    if text.startswith(("- ", "mapping: 1\n")):
        validator.validate(yaml.load(mapping(text)).data)


WRONG = {
    "a key": (RULE + "    opps: []\n", "'opps' was unexpected"),
    "an op": (RULE + "    ops: [transpoze: [1, 0]]\n", "'transpoze' was unexpected"),
    "two ops in one": (RULE + "    ops: [{reverse: 0, cast: int8}]\n", "too many properties"),
    "an op without a value": (RULE + "    ops: [transpose]\n", "is not of type 'object'"),
    "a value of another type": (RULE + "    ops: [transpose: 1]\n", "is not valid under any"),
    "a key of an op": (RULE + "    ops: [part: {axi: 0, index: 0, of: 1}]\n", "is not valid"),
    "no rules that are a list": ("mapping: 1\nrules: {}\n", "is not of type 'array'"),
    "another version": ("mapping: 2\nrules: []\n", "1 was expected"),
    "a group": (RULE + "drop: [{group: emma}]\n", "is not valid"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_it_refuses(text, says, validator):
    messages = [error.message for error in validator.iter_errors(yaml.load(text).data)]
    assert any(says in message for message in messages), messages


def test_it_is_written_beside_the_mappings(converter, folder):
    assert converter("schema", "-o", "schema.json").err == "wrote schema.json\n"
    assert (folder / "schema.json").read_text() == converter("schema").out
    assert converter("schema", "-o", "schema.json").code == 4
    assert converter("schema", "-o", "schema.json", "--overwrite").code == 0
    assert converter("schema", "-o", "no/folder/schema.json").code == 3


# ── in an editor ─────────────────────────────────────────────────────────────────────────────


class Server:
    """yaml-language-server over its standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes], root: Path) -> None:
        self.process = process
        self.root = root
        self.number = 0

    def send(self, method: str, params: object, number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.write(message if number is None else message | {"id": number})

    def write(self, message: object) -> None:
        body = json.dumps(message).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def read(self) -> dict:
        length = 0
        while (line := self.process.stdout.readline()) != b"\r\n":
            assert line, "the server has ended"
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return json.loads(self.process.stdout.read(length))

    def wait(self, wanted):
        """The first message that fits; questions of the server are answered with nothing."""
        while True:
            message = self.read()
            if "id" in message and "method" in message:
                items = message["params"].get("items", []) if message.get("params") else []
                answer = (
                    [None] * len(items) if message["method"].endswith("configuration") else None
                )
                self.write({"jsonrpc": "2.0", "id": message["id"], "result": answer})
            elif wanted(message):
                return message

    def ask(self, method: str, params: object):
        self.number += 1
        self.send(method, params, self.number)
        message = self.wait(lambda message: message.get("id") == self.number)
        assert "error" not in message, message
        return message["result"]

    def open(self, text: str, name: str = "m.yaml") -> list[str]:
        """Show the server a file; what it finds wrong in it."""
        path = self.root / name
        path.write_text(text)
        item = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self.send("textDocument/didOpen", {"textDocument": item})
        message = self.wait(
            lambda each: (
                each.get("method") == "textDocument/publishDiagnostics"
                and each["params"]["uri"] == path.as_uri()
            )
        )
        return [each["message"] for each in message["params"]["diagnostics"]]

    def complete(self, line: int, character: int, name: str = "m.yaml") -> list[str]:
        found = self.ask(
            "textDocument/completion",
            {
                "textDocument": {"uri": (self.root / name).as_uri()},
                "position": {"line": line, "character": character},
            },
        )
        return [item["label"] for item in found["items"]]


def installed() -> list[str] | None:
    """The command of the server: on the path, below a folder that is named, or from npm."""
    if found := shutil.which("yaml-language-server"):
        return [found]
    if not (shutil.which("node") and shutil.which("npm")):
        return None
    folder = Path(tempfile.gettempdir()) / "converter-yaml-language-server"
    script = folder / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
    if not script.is_file():
        folder.mkdir(exist_ok=True)
        install = ["npm", "install", "--silent", "--prefix", folder, "yaml-language-server@1"]
        subprocess.run(install, check=False, capture_output=True, timeout=300)
    return ["node", str(script)] if script.is_file() else None


@contextmanager
def running(root: Path) -> Iterator[Server]:
    command = installed()
    if command is None:
        pytest.skip("needs yaml-language-server, or node and npm")
    process = subprocess.Popen(
        [*command, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    )
    try:
        server = Server(process, root)
        folders = [{"uri": root.as_uri(), "name": "root"}]
        capabilities = {"textDocument": {"completion": {"completionItem": {}}}}
        server.ask(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": root.as_uri(),
                "capabilities": capabilities,
                "workspaceFolders": folders,
            },
        )
        server.send("initialized", {})
        settings = {
            "yaml": {"validate": True, "completion": True, "schemaStore": {"enable": False}}
        }
        server.send("workspace/didChangeConfiguration", {"settings": settings})
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
def test_an_editor_completes_ops_and_marks_an_unknown_one(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(schema()))
    head = f"{MODELINE}schema.json\n{RULE}    ops:\n"
    with running(tmp_path) as server:
        assert server.open(head + "      - transpoze: [1, 0]\n", "wrong.yaml") == [
            "Property transpoze is not allowed."
        ]
        assert server.open(head + "      - transpose: [1, 0]\n", "right.yaml") == []
        server.open(head + "      - \n", "begun.yaml")
        labels = server.complete(6, 8, "begun.yaml")
        assert set(OPS) <= set(labels), labels
        assert set(labels) <= set(OPS) | {"object(Op)", "- (array item) Op"}, labels
