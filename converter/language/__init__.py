"""The mapping language: files in YAML, name templates, and the rules they compile to."""

from __future__ import annotations

from converter.language.load import load, loads, shipped_names
from converter.language.rules import Rule, Rules

__all__ = ["Rule", "Rules", "load", "loads", "shipped_names"]
