"""Every code of a finding or an error: what it means, an example of it, and what is right.

Examples of MAP codes are mappings, or rules of one, which the tests load; with `tensors` they are
also planned for.  The other examples are a command, or a situation, and what to do.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One code.  `tensors` are lines of a name, a dtype and a shape: what the source holds."""

    title: str
    about: str
    bad: str
    good: str
    tensors: str = ""


CODES: dict[str, Code] = {
    "CVT000": Code(
        "something that no other code describes",
        "The base of all errors of this package; a message that shows it lacks a better code.",
        "an error that says no more",
        "report it, with the message",
    ),
    "MAP000": Code(
        "a mapping, or its plan, has problems; they follow",
        "Raised as one error with all findings; each of them has a code and a place of its own.",
        "converter convert a.ckpt b.pt -m wrong.yaml",
        "converter lint wrong.yaml",
    ),
    "MAP001": Code(
        "the file cannot be read, or is no YAML of the kind described above",
        "Mapping files are UTF-8 and YAML 1.2 core without anchors, aliases and tags.  A key that "
        "stands twice is refused, since one of the two would be ignored.",
        "mapping: 1\nrules:\n  - source: a\n    source: b\n    target: c\n",
        "mapping: 1\nrules:\n  - source: a\n    target: c\n",
    ),
    "MAP002": Code(
        "a key is unknown, missing, or of another type",
        "`lint --fix` repairs a misspelt key when only one can be meant.",
        "- source: a\n  traget: b\n",
        "- source: a\n  target: b\n",
    ),
    "MAP101": Code(
        "a template or pattern cannot be read, or is ambiguous",
        "A template must match a name in one way only, or it could not be solved backward: put a "
        "text between two holes that shows where one ends.",
        "- source: layer{a:word}{b:word}\n  target: '{a}.{b}'\n",
        "- source: layer{a}_{b:word}\n  target: '{a}.{b}'\n",
    ),
    "MAP102": Code(
        "unknown op",
        "`converter ops` lists the ops that there are.",
        "- source: a\n  target: b\n  ops:\n    - transpoze: [1, 0]\n",
        "- source: a\n  target: b\n  ops:\n    - transpose: [1, 0]\n",
    ),
    "MAP103": Code(
        "an op's value cannot be read",
        "`converter ops NAME` shows what an op takes.",
        "- source: a\n  target: b\n  ops:\n    - rearrange: h w i o -> o i h\n",
        "- source: a\n  target: b\n  ops:\n    - rearrange: h w i o -> o i h w\n",
    ),
    "MAP104": Code(
        "a hole stands on one side only, and nothing gathers or scatters",
        "A hole of the source alone would give several tensors one name; a hole of the target "
        "alone has no value.  `stack` and `concat` gather, `unstack` and `split` scatter.",
        "- source: expert_{e}/kernel\n  target: experts.weight\n",
        '- source: expert_{e}/kernel\n  target: experts.weight\n  ops:\n    - stack: "[e] i o"\n',
    ),
    "MAP105": Code(
        "a table is empty, or cannot be read backward",
        "Names are looked up in both directions, so no text stands twice in a table.",
        "mapping: 1\ntables:\n  t: {1: a, 2: a}\nrules:\n  - {source: 'x{i}', target: '{t[i]}'}\n",
        "mapping: 1\ntables:\n  t: {1: a, 2: b}\nrules:\n  - {source: 'x{i}', target: '{t[i]}'}\n",
    ),
    "MAP106": Code(
        "several sources or targets without an op that joins or cuts",
        "Several sources become one tensor by `concat` or `stack`; one tensor becomes several by "
        "`split` or `unstack`.",
        "- source: [q, k, v]\n  target: qkv\n",
        '- source: [q, k, v]\n  target: qkv\n  ops:\n    - concat: "[o] i"\n',
    ),
    "MAP107": Code(
        "an unknown size",
        "A size has a name in `sizes:` before `--size` or an op's shape can use it.",
        "mapping: 1\nrules: []\nmake:\n  - {target: a, shape: [width]}\n",
        "mapping: 1\nsizes: {width: 4}\nrules: []\nmake:\n  - {target: a, shape: [width]}\n",
    ),
    "MAP108": Code(
        "an op loses values, and the rule does not say `lossy: true`",
        "What is lost cannot come back, so it is never done unless it was asked for.",
        "- source: a\n  target: b\n  ops:\n    - part: {axis: '[o] i', index: 0, of: 3}\n",
        "- source: a\n  target: b\n  lossy: true\n  ops:\n"
        "    - part: {axis: '[o] i', index: 0, of: 3}\n",
    ),
    "MAP109": Code(
        "an installed package brings an op that cannot be used",
        "Its entry point in the group `converter.ops` must name a subclass of `converter.ops.Op` "
        "that has the same `name`, which is no op's of ours, and says what it is `about`.",
        "an entry point that cannot be imported",
        "repair the package, or remove it",
    ),
    "MAP110": Code(
        "a mapping cannot be included",
        "There is no such mapping, it includes itself, or it has problems of its own.",
        "mapping: 1\ninclude:\n  - mapping: layers/no-such-layer\n",
        "mapping: 1\ninclude:\n  - mapping: layers/dense-keras-torch\n",
    ),
    "MAP111": Code(
        "two rules, or a rule and a drop or a constant, claim one name",
        "The order of rules means nothing, so one of them leaves the name to the other by "
        "`except`.  The message has a name that both would take.",
        "- {source: 'conv{i}', target: 'c{i}'}\n- {source: conv1, target: first}\n",
        "- {source: 'conv{i}', target: 'c{i}', except: [conv1]}\n"
        "- {source: conv1, target: first}\n",
    ),
    "MAP112": Code(
        "included mappings contradict each other's contract",
        "The whole has one contract for each side.  Where parts differ, this file says which "
        "holds.",
        "mapping: 1\ninclude:\n"
        "  - {mapping: vgg16/slim-torchvision, source: a/, target: a.}\n"
        "  - {mapping: vgg16/fasterrcnn-pytorch, source: b/, target: b.}\n",
        "mapping: 1\nsource: {contract: {channels: RGB, mean: none}}\n"
        "target: {contract: {channels: RGB, mean: none}}\ninclude:\n"
        "  - {mapping: vgg16/slim-torchvision, source: a/, target: a.}\n"
        "  - {mapping: vgg16/fasterrcnn-pytorch, source: b/, target: b.}\n",
    ),
    "MAP120": Code(
        "no way back",
        "Going back needs what the op forgets: sizes of axes that it merges, the shape or dtype "
        "before it, the pieces that it leaves out.  A warning of `lint`, unless the rule has an "
        "`about` that says why; an error with `--reverse`.",
        "- source: a\n  target: b\n  ops:\n    - rearrange: h w o -> (h w) o\n",
        "- source: a\n  target: b\n  sizes: {h: 7}\n  ops:\n    - rearrange: h w o -> (h w) o\n",
    ),
    "MAP130": Code(
        "the mapping has no `about`",
        "People who look for a mapping read this one sentence.",
        "mapping: 1\nrules: [{source: a, target: b}]\n",
        "mapping: 1\nabout: the paper's network, to PyTorch\nrules: [{source: a, target: b}]\n",
    ),
    "MAP131": Code(
        "no op names a size",
        "Often the size of an axis that is spelt otherwise in the pattern.",
        "- source: a\n  target: b\n  sizes: {hh: 7}\n  ops:\n    - rearrange: h w -> w h\n",
        "- source: a\n  target: b\n  sizes: {h: 7}\n  ops:\n    - rearrange: h w -> w h\n",
    ),
    "MAP132": Code(
        "nothing looks a table up",
        "A table is used in a template: `{name[i]}`.",
        "mapping: 1\ntables:\n  t: {1: a}\nrules:\n  - {source: 'x{i}', target: 'y{i}'}\n",
        "mapping: 1\ntables:\n  t: {1: a}\nrules:\n  - {source: 'x{i}', target: 'y{t[i]}'}\n",
    ),
    "MAP133": Code(
        "another rule would do the same",
        "That rule leaves the name to this one by its `except`, and does nothing else to it.",
        "- source: conv{i}/bias\n  target: conv{i}.bias\n  except: [conv1/bias]\n"
        "- source: conv1/bias\n  target: conv1.bias\n",
        "- source: conv{i}/bias\n  target: conv{i}.bias\n",
    ),
    "MAP134": Code(
        "editors do not know that this is a mapping",
        "With the first line that is shown, editors complete words and mark mistakes.  "
        "`converter schema -o schema.json` writes the schema, `lint --fix` the line.",
        "mapping: 1",
        "# yaml-language-server: $schema=schema.json\nmapping: 1",
    ),
    "MAP140": Code(
        "an example does not come out as it says",
        "`mappings test` runs the examples under `tests:` forward, and backward where there is a "
        "way back; every element must be equal.",
        "mapping: 1\nrules:\n  - {source: a, target: b, ops: [transpose: [1, 0]]}\n"
        "tests:\n  - {rule: 0, in: [[1, 2]], out: [[1, 2]]}\n",
        "mapping: 1\nrules:\n  - {source: a, target: b, ops: [transpose: [1, 0]]}\n"
        "tests:\n  - {rule: 0, in: [[1, 2]], out: [[1], [2]]}\n",
    ),
    "MAP141": Code(
        "an example cannot be run, or there is none",
        "It names a rule that is not there, or its array is none.",
        "mapping: 1\nrules:\n  - {source: a, target: b}\ntests:\n  - {rule: 1, in: 1, out: 1}\n",
        "mapping: 1\nrules:\n  - {source: a, target: b}\ntests:\n  - {rule: 0, in: 1, out: 1}\n",
    ),
    "MAP142": Code(
        "a probe does not come out",
        "`plan` and `mappings test` compute each layer under `probes:` from the source's weights "
        "and from the mapped ones; the outputs must be equal.",
        "mapping: 1\nrules:\n  - {source: kernel, target: weight, ops: [reshape: [5, 4]]}\n"
        "probes:\n  - {layer: dense, source: keras, target: torch}\n",
        "mapping: 1\nrules:\n  - {source: kernel, target: weight, ops: [transpose: [1, 0]]}\n"
        "probes:\n  - {layer: dense, source: keras, target: torch}\n",
    ),
    "PLN201": Code(
        "no rule takes a source tensor",
        "Nothing is left out silently: map the tensor, or drop it and say why.",
        "- source: a\n  target: b\n",
        "mapping: 1\nrules:\n  - {source: a, target: b}\n"
        "drop:\n  - {source: step, because: a counter}\n",
        "a float32 [2, 3]\nstep int64 []\n",
    ),
    "PLN202": Code(
        "a rule or a constant matches nothing",
        "A name is misspelt, or the source is another model; `optional: true` allows it.",
        "- {source: a, target: b}\n- {source: aa, target: bb}\n",
        "- {source: a, target: b}\n- {source: aa, target: bb, optional: true}\n",
        "a float32 [2, 3]\n",
    ),
    "PLN203": Code(
        "a source tensor is claimed more than once",
        "Loading finds that for all names that can be (MAP111), but its search has a bound; the "
        "plan finds the rest.",
        "two of very many rules that both take the tensor",
        "a rule leaves a name to others by `except`",
    ),
    "PLN204": Code(
        "a target tensor is made more than once",
        "One of the two would be lost.  As with PLN203, what loading did not see is found here.",
        "two of very many rules that both make the tensor",
        "a rule leaves a name to others by `except`",
    ),
    "PLN205": Code(
        "a source is missing that a rule needs beside others",
        "A rule of several sources takes all or none; what is gathered counts from 0.",
        '- source: expert_{e}\n  target: experts\n  ops:\n    - stack: "[e] i"\n',
        '- source: expert_{e+1}\n  target: experts\n  ops:\n    - stack: "[e] i"\n',
        "expert_1 float32 [2]\nexpert_2 float32 [2]\n",
    ),
    "PLN206": Code(
        "a template has no name for these values",
        "The table lacks an entry, or an offset leads below zero.",
        "- {source: 'unit_{u}', target: '{u-1}'}\n",
        "- {source: 'unit_{u}', target: '{u}'}\n",
        "unit_0 float32 [2]\n",
    ),
    "PLN210": Code(
        "the source's contract contradicts the mapping's, or cannot be read",
        "The checkpoint says what its weights depend on, and the mapping expects something else.  "
        "It may have been converted before: a reversal that is applied twice undoes itself.",
        "the mapping's source says `channels: RGB`, the checkpoint `channels: BGR`",
        "choose the mapping for BGR, or go back to the first checkpoint",
    ),
    "PLN211": Code(
        "nothing would be converted",
        "The scope or the selection leaves no tensor.",
        "converter plan vgg_16.ckpt --only nothing",
        "converter plan vgg_16.ckpt --only 'vgg_16/*'",
    ),
    "PLN220": Code(
        "an op does not fit the shapes or dtypes",
        "`converter why TENSOR SOURCE -m MAPPING` shows the shape after each op.",
        "- source: a\n  target: b\n  ops:\n    - transpose: [2, 1, 0]\n",
        "- source: a\n  target: b\n  ops:\n    - transpose: [1, 0]\n",
        "a float32 [2, 3]\n",
    ),
    "PLN230": Code(
        "the target's format cannot hold a tensor",
        "Formats differ in dtypes and names.",
        "a tensor of strings, and `--to safetensors`",
        "--drop the tensor, or --to tf-v2",
    ),
    "SRC300": Code(
        "a checkpoint could not be read",
        "The system refused it; the message says how.",
        "a file without the right to read it",
        "chmod +r, or another user",
    ),
    "SRC301": Code(
        "no such file, folder or tensor",
        "The nearest names follow in the message.",
        "converter show vgg_16.ckpt vgg_16/fc7/weight",
        "converter show vgg_16.ckpt vgg_16/fc7/weights",
    ),
    "SRC302": Code(
        "no format recognises the content",
        "Formats are known by their bytes, whatever the suffix; `converter formats` lists them.",
        "converter inspect notes.txt",
        "converter inspect vgg_16.ckpt",
    ),
    "SRC303": Code(
        "truncated, inconsistent or otherwise broken bytes",
        "Often a download or a copy that was interrupted.",
        "a file that is shorter than its header says",
        "fetch it again, and compare its size",
    ),
    "SRC304": Code(
        "bytes differ from their checksum",
        "The file was damaged after it was written.",
        "one byte of a tensor has changed",
        "fetch it again, or restore it from a backup",
    ),
    "SRC305": Code(
        "sound, but holds something that is not handled",
        "The message names what it is.",
        "a variable that is stored in a way of its own",
        "save it again with its framework, in a common way",
    ),
    "SRC306": Code(
        "needs a library that is not installed",
        "The message names the extra that installs it.",
        "an Orbax checkpoint where the library tensorstore is not installed",
        "pip install 'checkpoint-converter[orbax]'",
    ),
    "DST400": Code(
        "a checkpoint could not be written",
        "The system refused it; what was there before is still there.",
        "a folder that is read-only",
        "choose another place for the target",
    ),
    "DST401": Code(
        "the target's format cannot hold a tensor",
        "Found before anything is written.",
        "a bfloat16 tensor, and a format without bfloat16",
        "`cast` it in a rule, or choose another format",
    ),
    "DST402": Code(
        "the disk is, or would become, full",
        "The space is reserved first, so nothing half-written is left.",
        "a target of 5 GB, and 2 GB free",
        "make room, or choose another disk",
    ),
    "SEC600": Code(
        "stopped for safety",
        "Nothing was changed.",
        "what the message names",
        "what its help says",
    ),
    "SEC601": Code(
        "the target is there and was not to be replaced",
        "Choose another name, or --overwrite.",
        "converter convert a.ckpt there.pt",
        "converter convert a.ckpt there.pt --overwrite",
    ),
    "SEC602": Code(
        "the file wants code run, or other files read",
        "A pickle can hold calls.  Only those that make tensors are known here, and none is made.",
        "a .pt file whose pickle calls os.system",
        "ask who wrote it for a file of tensors alone",
    ),
    "SEC603": Code(
        "a size, a depth or the memory is out of bounds",
        "A damaged or malicious file must not exhaust the machine.",
        "--max-memory below what one step needs",
        "a higher --max-memory",
    ),
    "VER500": Code(
        "two things that must be equal are not",
        "`converter verify` lists the tensors, and by how much they differ.",
        "the target was changed after it was converted",
        "convert again",
    ),
    "BAT101": Code(
        "two entries of a manifest have one name or one target",
        "A matrix needs its axes in the target: `${axis}`.",
        "batch: 1\nentries:\n  - {source: a.pt, target: c.npz}\n"
        "  - {source: b.pt, target: c.npz}\n",
        "batch: 1\nentries:\n  - {source: a.pt, target: c.npz}\n"
        "  - {source: b.pt, target: d.npz}\n",
    ),
    "BAT102": Code(
        "entries wait for each other",
        "An entry comes after those whose target is its source, and those that it `needs`.",
        "batch: 1\nentries:\n  - {source: a.pt, target: b.pt}\n  - {source: b.pt, target: a.pt}\n",
        "batch: 1\nentries:\n  - {source: a.pt, target: b.pt}\n  - {source: b.pt, target: c.pt}\n",
    ),
    "BAT103": Code(
        "a file, a mapping or an entry that a manifest names is not there",
        "Paths start at the manifest's folder.  A glob that matches nothing is an error unless its "
        "entry is `optional: true`.",
        "batch: 1\nentries:\n  - {source: 'in/*.pt', target: 'out/${stem}.npz'}\n",
        "batch: 1\nentries:\n  - {source: 'in/*.pt', target: 'out/${stem}.npz', optional: true}\n",
    ),
    "BAT104": Code(
        "a matrix cannot be expanded, or nothing gives a value to a variable",
        "Variables are the axes of the matrix, and `stem`, `file` and `folder` of the source.",
        "batch: 1\nentries:\n  - {source: a.pt, target: '${dtype}.npz'}\n",
        "batch: 1\nentries:\n  - source: a.pt\n    target: '${dtype}.npz'\n"
        "    matrix: {dtype: [float16]}\n    options: {dtype: '${dtype}'}\n",
    ),
    "BAT105": Code(
        "a target would replace what is read",
        "The source of the entry, a mapping, the manifest or a folder.",
        "batch: 1\nentries:\n  - {source: a.pt, target: ./a.pt}\n",
        "batch: 1\nentries:\n  - {source: a.pt, target: b.pt}\n",
    ),
    "BAT201": Code(
        "the lock would change",
        "With --locked, what is in the manifest, in the files that it names and in the lock must "
        "agree, and the same bytes must come out.",
        "a mapping was edited, and the lock was not checked in with it",
        "converter batch ports.yaml, and check the lock in",
    ),
}
