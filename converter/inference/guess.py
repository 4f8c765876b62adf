"""Which sources make which targets, by names and shapes alone: guesses, and said to be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

from converter.inference.axes import Axes
from converter.inference.layers import Layer, layers, pairs
from converter.inference.match import Found, Match, folder, words
from converter.tensors import TensorSpec

GUESSED = "guessed from names and shapes"
UNCERTAIN = "guessed, uncertain: others fit as well"
SQUARE = "guessed, uncertain: no shape shows the order of the axes"
AVERAGED = "guessed, uncertain: the moving average, for the weight itself fits as well"
FOLDED = "guessed, uncertain: the bias before a batch norm becomes part of its mean"

AVERAGE = "/ExponentialMovingAverage"
FILLS = {"weight": 1.0, "bias": 0.0, "mean": 0.0, "variance": 1.0, "counter": 0}
Specs = Mapping[str, TensorSpec]


def by_names(sources: Specs, targets: Specs) -> Found:
    """Match targets with sources by names, order and shapes; `uncertain` is what else may be."""
    return _Guess(sources, targets).run()


class _Guess:
    """The state of one search."""

    def __init__(self, sources: Specs, targets: Specs) -> None:
        self.specs = sources, targets
        self.layers = layers(sources), layers(targets)
        self.pairs = pairs(*self.layers)
        self.notes: dict[tuple[str, str], str] = {}  # source and target → what the reader is told
        self.means: dict[str, str] = {}  # a target → the bias that its source takes up
        self.found = Found()

    def run(self) -> Found:
        """Layer by layer, then single tensors, then what no source has."""
        for one, other, sure in self.pairs:
            for role, target in other.tensors.items():
                source = _role(role, one, other)
                averaged = source.endswith(AVERAGE) and source != role
                note = AVERAGED if averaged else GUESSED if sure else UNCERTAIN
                if source in one.tensors:
                    self.notes[one.tensors[source], target] = note
        self.left_over()
        self.folded()
        self.made_up()
        self.biases()
        self.match()
        self.close()
        return self.found

    def left_over(self) -> None:
        """Pair the tensors of layers that nothing was found for with those that others lack."""
        done = {layer for pair in self.pairs for layer in pair[:2]}
        made = {target for _, target in self.notes}
        sides = [
            {
                name: layer.specs[role]
                for layer in side
                for role, name in layer.tensors.items()
                if role in ("weight", "bias") and name not in made and "mean" not in layer.tensors
            }
            for side in ([x for x in self.layers[0] if x not in done], self.layers[1])
        ]
        alone = [[Layer(n, {"weight": n}, {"weight": s}) for n, s in x.items()] for x in sides]
        for one, other, _ in pairs(*alone):
            self.notes[one.name, other.name] = UNCERTAIN

    def folded(self) -> None:
        """A bias before a batch norm that the target's layer has not: it moves into the mean."""
        norms: dict[tuple[str, ...], list[tuple[Layer, Layer]]] = defaultdict(list)
        for one, other, _ in self.pairs:
            if one.main == "mean":
                norms[_place(one)].append((one, other))
        for one, other, _ in self.pairs:
            after = norms.get(_place(one), ())
            if one.main == "weight" and one.width and not other.width and len(after) == 1:
                ((ours, theirs),) = after
                if ours.specs["mean"].size == one.width and "mean" in theirs.tensors:
                    self.means[theirs.tensors["mean"]] = one.tensors["bias"]

    def made_up(self) -> None:
        """Constants of layers that the source has without them: they change no output."""
        made = {target for _, target in self.notes}
        for _, other, sure in self.pairs:
            for role, target in other.tensors.items():
                neutral = role in FILLS and (role != "weight" or other.main == "mean")
                if neutral and target not in made:
                    self.found.constants[target] = FILLS[role]
                    if not sure and role != "counter":
                        self.found.uncertain.add(target)
        for layer in self.layers[1]:
            if layer.main == "counter":
                self.found.constants[layer.tensors["counter"]] = FILLS["counter"]

    def biases(self) -> None:
        """Of two biases beside each other either may be the one that the other side has."""
        used = {source for source, _ in self.notes} | set(self.means.values())
        ours = {layer.tensors["bias"] for layer in self.layers[0] if "bias" in layer.tensors}
        theirs = {layer.tensors["bias"] for layer in self.layers[1] if "bias" in layer.tensors}
        lost = {folder(name) for name in ours - used}
        made = Counter(folder(name) for name in theirs & self.found.constants.keys())
        for source, target in self.notes:
            if (source in ours and folder(source) in lost) or (
                target in theirs and folder(target) in made
            ):
                self.notes[source, target] = UNCERTAIN
        several = Counter(map(folder, theirs))
        for target in theirs & self.found.constants.keys():
            if several[folder(target)] > 1 or self.held_by_a_vector(target, used):
                self.found.uncertain.add(target)

    def held_by_a_vector(self, target: str, used: Collection[str]) -> bool:
        """Is a vector of the source left over that may hold it, as ONNX has two biases in one?"""
        size = self.specs[1][target].size
        left = (
            layer.specs[role]
            for layer in self.layers[0]
            for role, name in layer.tensors.items()
            if role in ("weight", "bias") and name not in used
        )
        vectors = (spec.size for spec in left if max(spec.shape, default=1) == spec.size)
        return size > 0 and any(n % size == 0 for n in vectors if n)

    def match(self) -> None:
        """Find the ops of each pair."""
        axes = Axes(self.specs, self.notes)
        for (source, target), note in self.notes.items():
            ops, sure = axes.ops(source, target)
            said = note if sure or note != GUESSED else SQUARE
            names: tuple[str, ...] = (source,)
            negated: tuple[int, ...] = ()
            if target in self.means:
                names, negated, said = (source, self.means[target]), (1,), FOLDED
                ops = ({"sum": {}}, *ops)
            self.found.matches.append(Match(names, (target,), ops, said, negated))
            if said != GUESSED:
                self.found.uncertain.add(target)

    def close(self) -> None:
        """Note what is open."""
        made = {target for _, target in self.notes} | self.found.constants.keys()
        for name, spec in self.specs[1].items():
            if name not in made:
                self.found.open[name] = f"no source of its name and size ({spec})"


def _role(role: str, one: Layer, other: Layer) -> str:
    """The source's role for a target's: its moving average, which is what networks are run with."""
    average = role + AVERAGE
    return average if average in one.tensors and average not in other.tensors else role


def _place(layer: Layer) -> tuple[str, ...]:
    """What a convolution and its batch norm have in common in their names."""
    return tuple(word for word in words(layer.name) if word not in ("conv", "norm"))
