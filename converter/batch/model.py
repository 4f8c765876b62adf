"""The shape of a manifest, as pydantic models, and its JSON Schema for editors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from converter.files import size_of
from converter.language.names import TemplateError, parse_selector
from converter.ops.values import floating, numeric

VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
MAX_TEXT = 4096  # characters of a path or a pattern


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _selector(text: str) -> str:
    try:
        parse_selector(text)
    except TemplateError as error:
        raise ValueError(str(error)) from error
    return text


def _dtype(name: str) -> str:
    if not floating(numeric(name)):
        raise ValueError(f"'{name}' is no dtype of floating-point numbers")
    return name


def _nbytes(value: int | str) -> int:
    found = value if isinstance(value, int) else size_of(value)
    if not 0 < found < 1 << 60:
        raise ValueError(f"'{value}' is no size of a file")
    return found


def _plain(text: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 for char in text):  # noqa: PLR2004 - control
        raise ValueError("a control character")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("half a character")
    return text


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_plain)]
Pattern = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_selector)]
Scalar = str | int | float | bool


class OptionsModel(_Model):
    """How an entry is converted: what the options of `converter convert` say."""

    names: Literal["key", "full_name", "object"] | None = Field(
        default=None, description="what tensors of the source are called, of several names"
    )
    reverse: bool = Field(default=False, description="go the way back")
    source_scope: str = Field(default="", description="prefix of source names")
    target_scope: str = Field(default="", description="prefix of target names")
    only: list[Pattern] = Field(default_factory=list, description="only tensors that fit")
    drop: list[Pattern] = Field(default_factory=list, description="leave out what fits")
    sizes: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="sizes that the mapping names"
    )
    dtype: Annotated[str, AfterValidator(_dtype)] | None = Field(
        default=None, description="cast floating-point numbers to it, such as float16"
    )
    to: Text | None = Field(default=None, description="the target's format; default: its suffix")
    template: Text | None = Field(
        default=None, description="a TensorFlow 2 checkpoint whose objects the target has"
    )
    shard_size: Annotated[int | str, AfterValidator(_nbytes)] | None = Field(
        default=None, description="cut the target into files of at most this size, as 5GB"
    )


class SourceModel(_Model):
    """The part of an entry that decides how many it stands for."""

    source: Text = Field(
        description="a checkpoint, from the manifest's folder; or a glob such as `in/*.ckpt`"
    )


class EntryModel(SourceModel):
    """One conversion, or one for each file that `source` matches and each point of `matrix`."""

    name: Text | None = Field(default=None, description="what it is called; default: the target")
    mapping: Text | list[Text] = Field(
        default_factory=list, description="a shipped name or a file; several are chained"
    )
    target: Text = Field(
        description="the file to write; `${stem}` is the source's name without its suffix"
    )
    options: OptionsModel = Field(default_factory=OptionsModel)
    needs: list[Text] = Field(default_factory=list, description="entries that come before")
    optional: bool = Field(default=False, description="a glob that matches nothing is no error")
    matrix: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default_factory=dict, description="names and their values: one entry for each combination"
    )


class ManifestModel(_Model):
    """A manifest, before its matrices and globs are expanded."""

    batch: Annotated[int, Field(ge=1, le=1, description="the version of the language: 1")]
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="options of every entry that does not say otherwise"
    )
    entries: Annotated[list[dict[str, Any]], Field(min_length=1)]


def schema() -> dict[str, Any]:
    """The JSON Schema of manifests, draft-07: `${name}` may stand for any value."""
    from converter.language.schema import draft_07

    found = EntryModel.model_json_schema()
    definitions = found.pop("$defs")
    for model in (found, *definitions.values()):
        for name, field in model["properties"].items():
            if name != "matrix":
                model["properties"][name] = _or_variable(field)
    definitions["Entry"] = found
    options = {"allOf": [{"$ref": "#/$defs/OptionsModel"}], "description": "options of every entry"}
    manifest = {
        "title": "checkpoint-converter manifest",
        "description": "checkpoints to convert, for `converter batch`",
        "type": "object",
        "required": ["batch", "entries"],
        "additionalProperties": False,
        "properties": {
            "batch": {"const": 1, "description": "the version of the language"},
            "defaults": options,
            "entries": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Entry"}},
        },
        "$defs": definitions,
    }
    head = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return head | dict(draft_07(manifest, "checkpoint-converter manifest"))


def _or_variable(field: dict[str, Any]) -> dict[str, Any]:
    """A field that may be a variable instead, and so may what it holds, unless it is a text."""
    if field.get("type") == "string" or "$ref" in field:
        return field
    for key in ("items", "additionalProperties"):
        if isinstance(field.get(key), dict):
            field = field | {key: _or_variable(field[key])}
    kept = {key: value for key, value in field.items() if key in ("description", "default")}
    inner = {key: value for key, value in field.items() if key not in kept}
    return kept | {"anyOf": [inner, {"type": "string", "pattern": f"^{VARIABLE}$"}]}
