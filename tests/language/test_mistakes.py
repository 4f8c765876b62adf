"""A thousand mappings, each right but for one mistake, which is found where it was made.

A mapping is generated as lines; a mistake changes one word of it, and says which line and column a
diagnostic must then name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.language.codes import CODES
from converter.language.examples import run
from converter.language.fix import repair
from converter.language.lint import lint
from converter.language.load import shipped, shipped_names

PATH = Path("m.yaml")
COUNT = 1000


@dataclass
class Case:
    """A mapping, where its mistake is, and the codes that say so."""

    text: str
    line: int
    columns: range
    codes: tuple[str, ...]


class Writer:
    """The lines of a right mapping of some rules, and their places."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines = ["mapping: 1", "about: generated"]
        self.style = self.random.choice(["block", "flow"])
        if self.random.random() < 0.5:
            self.lines += ["# a comment, and a blank line", ""]
        self.table = self.random.choice(["layer", "feature", "block"])
        self.lines += ["tables:", f"  {self.table}: {{1: first, 2: second, 3: third}}"]
        self.lines += ["sizes: {heads: 4}", "rules:"]
        self.rules: list[int] = []  # the line of each rule's first word
        for number in range(self.random.randint(3, 8)):
            self.rule(number)
        self.lines += ["drop:", "  - {source: global_step, because: a counter}"]
        self.lines += ["make:", "  - {target: version, dtype: int64, fill: 1, because: asked for}"]

    def rule(self, number: int) -> None:
        self.rules.append(len(self.lines))
        name = f"net{number}"
        form = self.random.choice(
            [self.kernel, self.table_rule, self.choice, self.gather, self.cut]
        )
        source, target, ops = form(name)
        self.lines += [f"  - source: {source}", f"    target: {target}"]
        if ops and self.style == "flow":
            self.lines.append(f"    ops: [{', '.join(ops)}]")
        elif ops:
            self.lines += ["    ops:", *(f"      - {op}" for op in ops)]

    def kernel(self, name: str) -> tuple[str, str, list[str]]:
        op = self.random.choice(
            [
                ["{transpose: [1, 0]}"],
                ["{rearrange: h w i o -> o i h w}"],
                ["{rearrange: i (heads d) -> heads d i}", "{transpose: [2, 0, 1]}"],
                ['{reverse: "h w [i] o"}'],
                ["{cast: {from: float16, to: float32}}"],
            ]
        )
        return f"{name}/conv{{b}}_{{k}}/kernel", f"{name}.{{b}}.{{k}}.weight", op

    def table_rule(self, name: str) -> tuple[str, str, list[str]]:
        return f"{name}/layer{{i}}/bias", f'"{name}.{{{self.table}[i]}}.bias"', []

    def choice(self, name: str) -> tuple[str, str, list[str]]:
        return f"{name}/{{p:gamma|beta}}", f"{name}.{{p:weight|bias}}", []

    def gather(self, name: str) -> tuple[str, str, list[str]]:
        return f"{name}/expert_{{e}}/kernel", f"{name}.experts", ['{stack: "[e] i o"}']

    def cut(self, name: str) -> tuple[str, str, list[str]]:
        return f"{name}/qkv", f"[{name}.q, {name}.k, {name}.v]", ['{split: "[o] i"}']

    def pick(self, fits: Callable[[str], bool]) -> int | None:
        """The index of one of the lines that fit."""
        found = [nth for nth, line in enumerate(self.lines) if fits(line)]
        return self.random.choice(found) if found else None

    def case(self, line: int, old: str, new: str, codes: tuple[str, ...], at: str = "") -> Case:
        """Replace a word of a line; the diagnostic is at `at`, or anywhere in the new word."""
        before = self.lines[line]
        column = before.index(old)
        self.lines[line] = before.replace(old, new, 1)
        start = self.lines[line].index(at, column) if at else column
        columns = range(start + 1, start + 1 + max(len(at or new), 1))
        return Case("\n".join(self.lines) + "\n", line + 1, columns, codes)


Mistake = Callable[[Writer], Case | None]
MISTAKES: list[Mistake] = []


def mistake(function: Mistake) -> Mistake:
    MISTAKES.append(function)
    return function


def misspelt(word: str, rng: random.Random) -> str:
    """The word with one letter gone, twice, changed, or two of them exchanged."""
    at = rng.randrange(len(word) - 1)
    forms = [
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + "z" + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ]
    return rng.choice([form for form in forms if form != word])


OPS = ("transpose", "rearrange", "reverse", "cast", "stack", "split")


def op_in(line: str) -> str | None:
    return next((op for op in OPS if f"{{{op}: " in line), None)


@mistake
def an_op_is_misspelt(w: Writer) -> Case | None:
    line = w.pick(lambda text: op_in(text) is not None)
    if line is None:
        return None
    op = op_in(w.lines[line])
    wrong = misspelt(op, w.random)
    return w.case(line, f"{{{op}: ", f"{{{wrong}: ", ("MAP102",), wrong)


@mistake
def a_key_is_misspelt(w: Writer) -> Case:
    line = w.pick(lambda text: text.strip().startswith(("target:", "- source:")))
    key = "target" if "target" in w.lines[line] else "source"
    wrong = misspelt(key, w.random)
    return w.case(line, key, wrong, ("MAP002",), wrong)


@mistake
def a_key_at_the_top_is_misspelt(w: Writer) -> Case:
    key = w.random.choice(["about", "tables", "rules", "drop", "sizes", "make"])
    line = w.pick(lambda text: text.startswith(f"{key}:"))
    wrong = misspelt(key, w.random)
    return w.case(line, key, wrong, ("MAP002",), wrong)


@mistake
def a_key_of_a_drop_is_misspelt(w: Writer) -> Case:
    line = w.pick(lambda text: "global_step" in text)
    return w.case(line, "because", "becuase", ("MAP002",), "becuase")


@mistake
def an_axis_is_on_one_side(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{rearrange: h w i o -> o i h w}" in text)
    if line is None:
        return None
    return w.case(line, "-> o i h w", "-> o i h x", ("MAP103",), w.random.choice("x"))


@mistake
def an_axis_is_missing(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{rearrange: h w i o -> o i h w}" in text)
    return (
        line
        and w.case(line, "-> o i h w}", "-> o i h}", ("MAP103",), "")
        and Case(
            "\n".join(w.lines) + "\n",
            line + 1,
            range(w.lines[line].index("h w i o") + 3, w.lines[line].index("h w i o") + 4),
            ("MAP103",),
        )
    )


@mistake
def an_arrow_is_missing(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{rearrange: h w i o -> o i h w}" in text)
    return line and w.case(line, "h w i o -> o i h w", "h w i o o i h w", ("MAP103",))


@mistake
def a_parenthesis_is_open(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{rearrange: i (heads d)" in text)
    return line and w.case(line, "(heads d) ->", "(heads d ->", ("MAP103",), "(heads")


@mistake
def a_permutation_is_none(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{transpose: [1, 0]}" in text)
    return line and w.case(line, "[1, 0]", "[1, 1]", ("MAP103",))


@mistake
def an_axis_is_not_marked(w: Writer) -> Case | None:
    line = w.pick(lambda text: '"[o] i"' in text or '"[e] i o"' in text)
    if line is None:
        return None
    old = "[o] i" if "[o] i" in w.lines[line] else "[e] i o"
    return w.case(line, f'"{old}"', f'"{old.replace("[", "").replace("]", "")}"', ("MAP103",))


@mistake
def a_dtype_is_none(w: Writer) -> Case | None:
    line = w.pick(lambda text: "from: float16" in text)
    return line and w.case(line, "float16", "flaot16", ("MAP103",))


@mistake
def a_key_of_an_op_is_misspelt(w: Writer) -> Case | None:
    line = w.pick(lambda text: "from: float16" in text)
    return line and w.case(line, "{from:", "{form:", ("MAP103",), "form")


@mistake
def a_dtype_to_make_is_none(w: Writer) -> Case:
    line = w.pick(lambda text: "dtype: int64" in text)
    return w.case(line, "int64", "int46", ("MAP002",))


@mistake
def a_key_stands_twice(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    target = next(n for n in range(rule, len(w.lines)) if w.lines[n].startswith("    target:"))
    w.lines.insert(target + 1, "    target: another")
    return w.case(target + 1, "target", "target", ("MAP001",))


@mistake
def a_line_is_indented_too_little(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    line = w.lines[rule + 1]
    w.lines[rule + 1] = f"   {line.lstrip()}"
    return Case("\n".join(w.lines) + "\n", rule + 2, range(4, 5), ("MAP001",))


@mistake
def a_line_is_indented_too_far(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    w.lines[rule + 1] = "      " + w.lines[rule + 1].lstrip()
    # A key cannot stand inside the text that the line above begins: its colon says that it is one.
    return Case("\n".join(w.lines) + "\n", rule + 2, range(13, 14), ("MAP001",))


@mistake
def a_tab_indents(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    w.lines[rule + 1] = "\t" + w.lines[rule + 1].lstrip()
    return Case("\n".join(w.lines) + "\n", rule + 2, range(1, 3), ("MAP001",))


@mistake
def a_colon_has_no_space(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    w.lines[rule + 1] = w.lines[rule + 1].replace(": ", ":", 1)
    return Case("\n".join(w.lines) + "\n", rule + 2, range(5, 6), ("MAP001",))


@mistake
def a_bracket_is_not_closed(w: Writer) -> Case | None:
    line = w.pick(lambda text: text.startswith("  - {source: global_step"))
    w.lines[line] = w.lines[line].replace("}", "")
    return Case("\n".join(w.lines) + "\n", line + 1, range(5, 6), ("MAP001",))


@mistake
def a_quote_is_not_closed(w: Writer) -> Case | None:
    line = w.pick(lambda text: '"[o] i"' in text or '"[e] i o"' in text)
    if line is None:
        return None
    column = w.lines[line].index('"') + 1
    w.lines[line] = w.lines[line][::-1].replace('"', "", 1)[::-1]
    return Case("\n".join(w.lines) + "\n", line + 1, range(1, column + 1), ("MAP001",))


@mistake
def a_table_is_unknown(w: Writer) -> Case | None:
    line = w.pick(lambda text: f"{{{w.table}[" in text)
    return line and w.case(line, f"{{{w.table}[", "{tabel[", ("MAP101",), "tabel")


@mistake
def a_table_has_a_text_twice(w: Writer) -> Case:
    line = w.pick(lambda text: "third" in text)
    return w.case(line, "third", "first", ("MAP105",), "first") and Case(
        "\n".join(w.lines) + "\n",
        line + 1,
        range(w.lines[line].rindex("first") + 1, w.lines[line].rindex("first") + 6),
        ("MAP105",),
    )


@mistake
def a_table_has_a_key_twice(w: Writer) -> Case:
    line = w.pick(lambda text: "third" in text)
    w.lines[line] = w.lines[line].replace("3: third", "2: third")
    column = w.lines[line].rindex("2: third") + 1
    return Case("\n".join(w.lines) + "\n", line + 1, range(column, column + 1), ("MAP001",))


@mistake
def a_hole_is_not_closed(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{k}/kernel" in text)
    return line and w.case(line, "{k}/kernel", "{k/kernel", ("MAP101",), "{k")


@mistake
def a_hole_has_no_type(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{p:gamma|beta}" in text)
    return line and w.case(line, "{p:gamma|beta}", "{p:wrod}", ("MAP101",), "wrod")


@mistake
def two_holes_touch(w: Writer) -> Case | None:
    line = w.pick(lambda text: "conv{b}_{k}" in text)
    return line and w.case(line, "conv{b}_{k}", "conv{b}{k}", ("MAP101",), "k}")


@mistake
def a_star_captures_nothing(w: Writer) -> Case | None:
    line = w.pick(lambda text: "conv{b}_{k}/kernel" in text)
    return line and w.case(line, "/conv{b}_{k}/kernel", "/conv{b}_{k}/*", ("MAP101",), "*")


@mistake
def a_hole_cannot_be_solved_backward(w: Writer) -> Case | None:
    line = w.pick(lambda text: "source:" in text and "conv{b}_{k}/kernel" in text)
    if line is None:
        return None
    return w.case(line + 1, ".{b}.{k}.weight", ".{b}.weight", ("MAP104",)) and Case(
        "\n".join(w.lines) + "\n", line + 2, range(13, 14), ("MAP104",)
    )


@mistake
def a_hole_of_the_target_has_no_value(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{b}.{k}.weight" in text)
    if line is None:
        return None
    w.lines[line] = w.lines[line].replace("{b}.{k}.weight", "{b}.{k}.{m}.weight")
    return Case("\n".join(w.lines) + "\n", line + 1, range(13, 14), ("MAP104",))


@mistake
def alternatives_do_not_pair_up(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{p:weight|bias}" in text)
    return line and w.case(line, "{p:weight|bias}", "{p:weight|bias|scale}", ("MAP101",), "p:")


@mistake
def sources_are_not_joined(w: Writer) -> Case | None:
    line = w.pick(lambda text: "{p:gamma|beta}" in text)
    if line is None:
        return None
    w.lines[line] = "  - source: [one, two]"
    w.lines[line + 1] = "    target: both"
    return Case("\n".join(w.lines) + "\n", line + 2, range(13, 14), ("MAP106",))


@mistake
def a_cut_is_missing(w: Writer) -> Case | None:
    line = w.pick(lambda text: text.startswith("    target: [net"))
    if line is None:
        return None
    del w.lines[line + 1 : line + (2 if "[{split" in w.lines[line + 1] else 3)]
    return Case("\n".join(w.lines) + "\n", line + 1, range(13, 14), ("MAP106",))


@mistake
def two_rules_claim_one_source(w: Writer) -> Case | None:
    line = w.pick(lambda text: "source:" in text and "conv{b}_{k}/kernel" in text)
    if line is None:
        return None
    name = w.lines[line].strip().removeprefix("- source: ").split("/")[0]
    at = next(n for n, text in enumerate(w.lines) if text == "drop:")
    w.lines[at:at] = [f"  - source: {name}/conv1_2/kernel", "    target: twice"]
    return Case("\n".join(w.lines) + "\n", at + 1, range(13, 14), ("MAP111",))


@mistake
def two_rules_make_one_target(w: Writer) -> Case | None:
    line = w.pick(lambda text: "target:" in text and "{b}.{k}.weight" in text)
    if line is None:
        return None
    name = w.lines[line].strip().removeprefix("target: ").split(".")[0]
    at = next(n for n, text in enumerate(w.lines) if text == "drop:")
    w.lines[at:at] = ["  - source: elsewhere", f"    target: {name}.1.2.weight"]
    return Case("\n".join(w.lines) + "\n", at + 2, range(13, 14), ("MAP111",))


@mistake
def a_drop_names_what_a_rule_takes(w: Writer) -> Case | None:
    line = w.pick(lambda text: "source:" in text and "conv{b}_{k}/kernel" in text)
    if line is None:
        return None
    name = w.lines[line].strip().removeprefix("- source: ").split("/")[0]
    drop = w.pick(lambda text: "global_step" in text)
    w.lines.insert(drop + 1, f'  - {{source: "{name}/**", because: not needed}}')
    return Case("\n".join(w.lines) + "\n", drop + 2, range(5, 6), ("MAP111",))


@mistake
def a_constant_is_what_a_rule_makes(w: Writer) -> Case | None:
    line = w.pick(lambda text: "target:" in text and "{p:weight|bias}" in text)
    if line is None:
        return None
    name = w.lines[line].strip().removeprefix("target: ").split(".")[0]
    w.lines.append(f"  - {{target: {name}.bias, because: asked for}}")
    return Case("\n".join(w.lines) + "\n", len(w.lines), range(5, 6), ("MAP111",))


@mistake
def a_drop_has_no_reason(w: Writer) -> Case:
    line = w.pick(lambda text: "global_step" in text)
    return w.case(line, ", because: a counter", "", ("MAP002",)) and Case(
        "\n".join(w.lines) + "\n", line + 1, range(5, 6), ("MAP002",)
    )


@mistake
def a_size_is_none(w: Writer) -> Case:
    line = w.pick(lambda text: "heads: 4" in text and "sizes" in text)
    wrong = w.random.choice(["0", "-4", "four", "4.5", "yes"])
    return w.case(line, "heads: 4", f"heads: {wrong}", ("MAP002",), wrong)


@mistake
def a_number_to_make_does_not_fit(w: Writer) -> Case:
    line = w.pick(lambda text: "dtype: int64" in text)
    return w.case(line, "fill: 1", "fill: 1.5", ("MAP002",), "1.5")


@mistake
def another_version(w: Writer) -> Case:
    return w.case(0, "1", w.random.choice(["2", "one", "1.0", "true"]), ("MAP002",))


@mistake
def an_alias(w: Writer) -> Case:
    rule = w.random.choice(w.rules)
    return w.case(rule, "source: ", "source: *", ("MAP001",), "*")


@mistake
def a_pattern_of_a_drop_is_none(w: Writer) -> Case:
    line = w.pick(lambda text: "global_step" in text)
    return w.case(line, "global_step", '"global_step{"', ("MAP101",), "{")


def generated() -> list[tuple[str, int]]:
    return [(MISTAKES[seed % len(MISTAKES)].__name__, seed) for seed in range(COUNT)]


def make(seed: int) -> Case | None:
    """The case of a seed: the first of its writers for which the mistake can be made."""
    for attempt in range(50):
        case = MISTAKES[seed % len(MISTAKES)](Writer(seed * 50 + attempt))
        if case is not None:
            return case
    raise AssertionError("no mapping that the mistake fits")


def test_without_a_mistake_there_is_none():
    for seed in range(200):
        text = "\n".join(Writer(seed).lines) + "\n"
        found = [each for each in lint(text, PATH) if each.severity == "error"]
        assert not found, f"{text}\n{found[0]}"


@pytest.mark.parametrize("which", range(len(MISTAKES)), ids=lambda n: MISTAKES[n].__name__)
def test_a_mistake_is_found_where_it_was_made(which):
    for seed in range(which, COUNT, len(MISTAKES)):
        case = make(seed)
        found = [each for each in lint(case.text, PATH) if each.severity == "error"]
        assert found, f"seed {seed}: nothing found\n{case.text}"
        places = [(each.code, each.line, each.column) for each in found]
        assert any(
            code in case.codes and line == case.line and column in case.columns
            for code, line, column in places
        ), f"seed {seed}: {case.line}:{case.columns} {case.codes}\n{places}\n{case.text}"
        assert len(found) <= 3, f"seed {seed}: one mistake, {places}\n{case.text}"


@pytest.mark.parametrize("name", shipped_names())
def test_no_damage_is_an_error_of_ours(name):
    """Whatever words stand elsewhere, a mapping is read, repaired and its examples are run."""
    rng = random.Random(name)
    text = (shipped() / f"{name}.yaml").read_text(encoding="utf-8")
    words = re.split(r"(\s+|[\[\]{},:])", text)
    for _ in range(30):
        mixed = list(words)
        for _ in range(rng.randint(1, 3)):
            mixed[rng.randrange(len(mixed))] = rng.choice(words)
        damaged = "".join(mixed)
        better, found = repair(damaged, PATH, lint)
        assert all(each.code in CODES and each.line >= 1 for each in found), damaged
        run(better, PATH)


def test_there_are_a_thousand():
    assert len({make(seed).text for seed in range(COUNT)}) > 0.9 * COUNT
