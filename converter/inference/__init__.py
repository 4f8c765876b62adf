"""Two checkpoints → the mapping between them, as a person would have written it, and proven.

    values on both sides    fingerprints ─► matches ─► ops ─► rules with holes ─► planned and diffed
    names on one side       layers ─► blocks that look the same ─► guesses, each said to be one

Fingerprints are sums that no permutation changes, so nothing is tried pair by pair.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property

from converter.compare import diff
from converter.errors import MappingError
from converter.inference.drafts import Draft, Tables, escaped, literal
from converter.inference.guess import UNCERTAIN, by_names
from converter.inference.match import Found, Match, by_values, leaf
from converter.inference.names import generalise
from converter.inference.write import Draftbook, drops, in_order
from converter.language.load import loads
from converter.language.names import split
from converter.language.rules import Rules
from converter.plan import Port, plan
from converter.tensors import Checkpoint, TensorSpec

__all__ = ["Inferred", "infer"]

TRIES = 4  # to keep rules apart, before each name gets its own


@dataclass(frozen=True)
class Inferred:
    """A mapping that was inferred: its text, and how sure it is.

    `open` are targets that nothing was found for, with the reason.  `exact` says that the mapping
    was applied and gave every other target bit for bit; with names alone it never is.  `uncertain`
    are targets of a guess that others fit as well.
    """

    yaml: str
    open: Mapping[str, str]
    exact: bool
    guessed: bool = False
    uncertain: AbstractSet[str] = frozenset()

    @cached_property
    def rules(self) -> Rules:
        """The mapping, compiled."""
        return loads(self.yaml)

    @property
    def port(self) -> Port:
        """The mapping, ready to use."""
        return Port(self.rules)

    @property
    def complete(self) -> bool:
        """Is every target made?"""
        return not self.open

    def to_yaml(self) -> str:
        """The text of the mapping file."""
        return self.yaml


Known = Checkpoint | Mapping[str, TensorSpec]


def infer(source: Known, target: Known) -> Inferred:
    """The mapping from one checkpoint to another; names and shapes of one of them may do."""
    if not isinstance(target, Checkpoint) or not isinstance(source, Checkpoint):
        ours, theirs = (_specs(side) for side in (source, target))
        return _written(ours, theirs, by_names(ours, theirs), guessed=True)
    sources = {name: tensor.view for name, tensor in source.items()}
    targets = {name: tensor.view for name, tensor in target.items()}
    result = _written(source.specs, target.specs, by_values(sources, targets), guessed=False)
    exact = _proven(result, source, target)
    return Inferred(result.yaml, result.open, exact)


def _specs(side: Known) -> Mapping[str, TensorSpec]:
    return side.specs if isinstance(side, Checkpoint) else side


def _proven(result: Inferred, source: Checkpoint, target: Checkpoint) -> bool:
    planned = result.port.plan(source)
    if planned.errors:
        return False
    rows = diff(planned.apply(source), target)
    return all(row.equal or (row.status == "extra" and row.name in result.open) for row in rows)


def _written(
    sources: Mapping[str, TensorSpec],
    targets: Mapping[str, TensorSpec],
    found: Found,
    *,
    guessed: bool,
) -> Inferred:
    """The mapping of what was found: generalised, or name by name should that not plan."""
    made = {t for m in found.matches for t in m.targets} | found.constants.keys()
    clashing: frozenset[str] = frozenset()
    for fold in (*[True] * TRIES, False):
        book = _book(sources, targets, found, clashing if fold else None)
        text = book.text(sources, targets)
        try:
            planned = plan(loads(text), sources)
        except MappingError as error:
            clashing |= _templates(error)
            continue
        if not planned.errors and planned.specs.keys() == made:
            break
    return Inferred(text, found.open, exact=False, guessed=guessed, uncertain=found.uncertain)


def _templates(error: MappingError) -> set[str]:
    """The templates of rules that claim one name, as the diagnostics quote them."""
    found = (d.found for d in error.diagnostics if d.code == "MAP111")
    return {text for words in found for text in re.findall("`([^`]+)`", words)}


def _book(
    sources: Mapping[str, TensorSpec],
    targets: Mapping[str, TensorSpec],
    found: Found,
    clashing: frozenset[str] | None,
) -> Draftbook:
    """All that the mapping says; with `clashing` None, name by name."""
    tables = Tables()
    names = list(sources)
    matches = found.matches
    made = [t for m in matches for t in m.targets] + list(found.constants)
    if clashing is None:
        rules = literal(matches)
    else:
        rules = generalise(matches, (names, made), tables, clashing)
    used = {name for match in matches for name in match.sources}
    left = [name for name in names if name not in used]
    selectors, groups = drops(left, used)
    makes = list(_makes(found, sources, targets, tables, clashing))
    return Draftbook(
        "Inferred by converter from two checkpoints",
        rules,
        makes,
        selectors,
        groups,
        tables,
        found.open,
    )


Made = tuple[Draft, TensorSpec, float | int, bool]


def _makes(
    found: Found,
    sources: Mapping[str, TensorSpec],
    targets: Mapping[str, TensorSpec],
    tables: Tables,
    clashing: frozenset[str] | None,
) -> Iterator[Made]:
    """The constants, one for each tensor that they stand beside where they do."""
    made = [t for m in found.matches for t in m.targets] + list(found.constants)
    kinds: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, value in found.constants.items():
        spec = targets[name]
        doubt = name in found.uncertain
        kinds[leaf(name), str(spec.dtype), len(spec.shape), repr(value), doubt].append(name)
    for group in kinds.values():
        value = found.constants[group[0]]
        note = UNCERTAIN if group[0] in found.uncertain else ""
        beside = _beside(group, found.matches) if clashing is not None and len(group) > 1 else None
        if beside is None or clashing is None:
            for name in group:
                yield Draft((), (escaped(name),), (), note, ()), targets[name], value, True
            continue
        shaped = any(sources[m.sources[0]].shape != targets[m.targets[0]].shape for m in beside)
        shapes: dict[tuple[int, ...], list[Match]] = defaultdict(list)
        for match in beside:
            shapes[targets[match.targets[0]].shape if shaped else ()].append(match)
        for matches in shapes.values():
            drafts = generalise(matches, (sources, made), tables, clashing, 0)
            for draft in sorted(drafts, key=in_order(sources)):
                spec = targets[draft.matches[0].targets[0]]
                yield replace(draft, note=note), spec, value, shaped


def _beside(group: Sequence[str], matches: Sequence[Match]) -> list[Match] | None:
    """Pairs of a source and a constant target, by a target that stands in the same folder."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for match in matches:
        if len(match.targets) == len(match.sources) == 1:
            name = match.targets[0]
            folders[name[: len(name) - len(split(name)[-1])]][leaf(name)] = match.sources[0]
    rows = [folders.get(name[: len(name) - len(leaf(name))], {}) for name in group]
    common = set(rows[0]).intersection(*rows[1:]) if rows else set()
    if not common:
        return None
    word = min(common)
    return [Match((row[word],), (name,)) for row, name in zip(rows, group, strict=True)]
