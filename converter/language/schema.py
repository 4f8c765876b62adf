"""The JSON Schema of mapping files, for editors: draft-07, one object of one key for each op."""

from __future__ import annotations

from typing import Any

from converter import record
from converter.language.model import MappingModel
from converter.layers import LAYERS
from converter.ops import OPS, Op

TITLE = "checkpoint-converter mapping"
_WORDS = {"prefixItems": "items", "$defs": "definitions"}
_PROBES: dict[str, Any] = {
    "string": "a",
    "array": [0],
    "integer": 0,
    "number": 0.5,
    "boolean": True,
    "null": None,
}


def schema() -> dict[str, Any]:
    """The schema as plain data; words that draft-07 lacks are put into its own."""
    found = record.schema(MappingModel) | {
        "required": ["mapping"],
        "anyOf": [{"required": ["rules"]}, {"required": ["include"]}],
    }
    definitions = found.pop("$defs")
    definitions["ProbeModel"]["properties"]["layer"]["enum"] = sorted(LAYERS)
    for model in definitions.values():
        if "ops" in model["properties"]:
            model["properties"]["ops"]["items"] = {"$ref": "#/definitions/Op"}
    for name, kind in OPS.items():
        fields = record.schema(kind)
        definitions |= fields.pop("$defs", {})
        definitions[f"op_{name}"] = _forms(kind, fields)
    definitions["Op"] = {
        "type": "object",
        "description": "one word and its value, as in `- transpose: [1, 0]`",
        "properties": {name: _op(name, kind) for name, kind in OPS.items()},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": TITLE}
    return head | draft_07({**found, "definitions": definitions, "title": TITLE})  # type: ignore[no-any-return]


def _op(name: str, kind: type[Op]) -> dict[str, Any]:
    return {"description": kind.about, "allOf": [{"$ref": f"#/definitions/op_{name}"}]}


def _forms(kind: type[Op], fields: dict[str, Any]) -> dict[str, Any]:
    """The long form, with a key for each field; and the short one, of the first field alone."""
    fields.pop("description", None)
    short = [word for word, probe in _PROBES.items() if _takes(kind, probe)]
    if not short:
        return fields
    first: dict[str, Any] = next(iter(fields["properties"].values()), {"enum": [None]})
    return {"anyOf": [first, fields]}


def _takes(kind: type[Op], value: Any) -> bool:
    """Does the op read a value of this type, sound or not, as a short form?"""
    try:
        kind.read(value)
    except record.Refused as error:
        return not any(detail["type"] == "model_type" for detail in error.details)
    return True


def draft_07(node: Any, title: str = TITLE) -> Any:
    """The same in words that editors read: definitions, lists of items, no titles of pydantic's."""
    if isinstance(node, list):
        return [draft_07(item, title) for item in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "$ref":
            out[key] = value.replace("#/$defs/", "#/definitions/")
        elif key in ("properties", "definitions", "$defs"):  # their keys are names, of any word
            out[str(_WORDS.get(key, key))] = {
                name: draft_07(each, title) for name, each in value.items()
            }
        elif key != "title" or value == title:
            out[str(_WORDS.get(key, key))] = draft_07(value, title)
    if "$ref" in out and len(out) > 1:  # beside it, draft-07 reads nothing
        out["allOf"] = [{"$ref": out.pop("$ref")}]
    return out
