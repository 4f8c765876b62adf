"""The language models of Google and OpenAI, by their own code: variables, checkpoints, outputs.

    python -m tests.oracles.google_text JOBS.json

Each job is `{family, config, checkpoint, out}`: the model is built, gets seeded random weights,
runs on the arrays of the file `config["inputs"]`, and is saved by TensorFlow's Saver; OUT.npz gets
its outputs.

BERT, ALBERT and GPT-2 are the authors' packages (`bert-tensorflow`, `albert-tensorflow`,
`gpt-2-simple`), T5 is built by `mesh-tensorflow` as the gin files of the package `t5` say.  They
lie in `oracles.LEGACY`.  ELECTRA has no package: here is what its `modeling.BertModel`,
`run_pretraining.PretrainingModel` and the `get_prediction_module` of its tasks add to BERT's layers
(github.com/google-research/electra, 8a46635), with BERT's own functions.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import tensorflow as tf
import tf_slim

from tests import oracles

tf1 = tf.compat.v1
Config = Mapping[str, Any]
Outputs = dict[str, Any]
BATCH, LENGTH = 2, 7


def prepare() -> None:
    """What modules of TensorFlow 1's time import; `contrib`'s layers live on as TF-Slim."""
    sys.path.insert(0, str(oracles.LEGACY))
    warnings.simplefilter("ignore")
    tf1.disable_v2_tensorshape()
    tf1.flags, tf1.app, tf1.estimator = MagicMock(), MagicMock(), MagicMock()
    sys.modules["tensorflow.contrib"] = MagicMock(layers=tf_slim.layers)
    for name in ("sentencepiece", "tensorflow_hub", "mesh_tensorflow.tpu_variables"):
        sys.modules[name] = MagicMock()
    for name in ("gpt_2_simple", "mesh_tensorflow.transformer"):
        package = types.ModuleType(name)  # without an __init__ that imports data sets
        package.__path__ = [str(oracles.LEGACY.joinpath(*name.split(".")))]
        sys.modules[name] = package


def inputs(config: Config) -> dict[str, Any]:
    """A batch of ids with a mask and segments, and ids for a decoder, each of BATCH by LENGTH."""
    if "inputs" in config:
        return oracles.load_arrays(Path(config["inputs"]))
    names = ("ids", "mask", "segments", "decoder_ids")
    return dict.fromkeys(names, np.zeros((BATCH, LENGTH), np.int32))


def _bert_inputs(config: Config) -> dict[str, Any]:
    given = inputs(config)
    names = {"ids": "input_ids", "mask": "input_mask", "segments": "token_type_ids"}
    return {theirs: tf.constant(given[ours]) for ours, theirs in names.items()}


def _labels() -> tuple[Any, Any, Any]:
    everywhere = tf.constant(np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)))
    return everywhere, tf.zeros_like(everywhere), tf.ones(everywhere.shape)


def bert(config: Config) -> Outputs:
    """Pretraining: masked words and the next sentence."""
    from bert import modeling, run_pretraining

    settings = modeling.BertConfig.from_dict(dict(config))
    model = modeling.BertModel(settings, is_training=False, **_bert_inputs(config))
    hidden = model.get_sequence_output()
    words = run_pretraining.get_masked_lm_output(
        settings, hidden, model.get_embedding_table(), *_labels()
    )
    labels = tf.zeros(BATCH, tf.int32)
    follows = run_pretraining.get_next_sentence_output(settings, model.get_pooled_output(), labels)
    return {"words": words[2], "sentence": follows[2]}


def bert_classifier(config: Config) -> Outputs:
    """A sentence classifier, as `run_classifier` trains it."""
    from bert import run_classifier

    ids, mask, segments = _bert_inputs(config).values()
    settings = run_classifier.modeling.BertConfig.from_dict(dict(config))
    labels = tf.zeros(BATCH, tf.int32)
    found = run_classifier.create_model(settings, False, ids, mask, segments, labels, 3, False)
    return {"logits": found[2]}


def bert_squad(config: Config) -> Outputs:
    """Answers in a text, as `run_squad` trains it."""
    from bert import run_squad

    settings = run_squad.modeling.BertConfig.from_dict(dict(config))
    start, end = run_squad.create_model(settings, False, *_bert_inputs(config).values(), False)
    return {"start": start, "end": end}


def albert(config: Config) -> Outputs:
    """Pretraining: masked words and the order of sentences."""
    with patch.dict(sys.modules, tensorflow=tf1):
        from albert import modeling, run_pretraining
    settings = modeling.AlbertConfig.from_dict(dict(config))
    model = modeling.AlbertModel(settings, is_training=False, **_bert_inputs(config))
    hidden = model.get_sequence_output()
    words = run_pretraining.get_masked_lm_output(
        settings, hidden, model.get_embedding_table(), *_labels()
    )
    labels = tf.zeros(BATCH, tf.int32)
    order = run_pretraining.get_sentence_order_output(settings, model.get_pooled_output(), labels)
    return {"words": words[2], "sentence": order[2]}


def albert_classifier(config: Config) -> Outputs:
    """A sentence classifier, as `run_classifier` trains it; of one class for multiple choice."""
    with patch.dict(sys.modules, tensorflow=tf1):
        from albert import classifier_utils, modeling
    settings = modeling.AlbertConfig.from_dict(dict(config))
    given, labels = _bert_inputs(config).values(), tf.zeros(BATCH, tf.int32)
    found = classifier_utils.create_model(
        settings, False, *given, labels, config["classes"], False, "mnli"
    )
    return {"logits": found[3]}


def albert_squad(config: Config) -> Outputs:
    """Answers in a text, as `run_squad_v1` trains it."""
    with patch.dict(sys.modules, tensorflow=tf1):
        from albert import modeling, squad_utils
    settings = modeling.AlbertConfig.from_dict(dict(config))
    given = _bert_inputs(config).values()
    start, end = squad_utils.create_v1_model(settings, False, *given, False)
    return {"start": start, "end": end}


def electra_task(config: Config) -> Outputs:
    """A classifier of texts (`ClassificationTask`), and a tagger (`TaggingTask`) beside it."""
    from bert import modeling

    _, hidden = _electra(modeling, config, config, "electra")
    with tf1.variable_scope(f"task_specific/{config['task']}", reuse=tf1.AUTO_REUSE):
        layer = tf1.layers.Dense(3, name="dense")
        return {"text": layer(hidden[:, 0]), "tokens": layer(hidden)}


def electra_squad(config: Config) -> Outputs:
    """Answers in a text (`QATask` without `joint_prediction`), before others are masked."""
    from bert import modeling

    _, hidden = _electra(modeling, config, config, "electra")
    with tf1.variable_scope("task_specific/squadv1"):
        start, end = (tf.squeeze(tf1.layers.dense(hidden, 1), -1) for _ in "se")
    return {"start": start, "end": end}


def electra(config: Config) -> Outputs:
    """Pretraining: a generator of words and a discriminator share the embeddings."""
    from bert import modeling

    generator = {**config, **config["generator"]}
    table, reprs = _electra(modeling, config, generator, "generator")
    with tf1.variable_scope("generator_predictions"):
        hidden = tf1.layers.dense(reprs, config["embedding_size"], _gelu)
        hidden = modeling.layer_norm(hidden)
        bias = tf1.get_variable("output_bias", [config["vocab_size"]])
        words = tf.nn.bias_add(tf.einsum("bth,vh->btv", hidden, table), bias)
    _, reprs = _electra(modeling, config, config, "electra")
    with tf1.variable_scope("discriminator_predictions"):
        hidden = tf1.layers.dense(reprs, config["hidden_size"], _gelu)
        fake = tf.squeeze(tf1.layers.dense(hidden, 1), -1)
    return {"words": words, "fake": fake}


def _gelu(x: Any) -> Any:
    """ELECTRA's, which is not BERT's of today."""
    return x * 0.5 * (1.0 + tf.math.erf(x / tf.sqrt(2.0)))


def _electra(modeling: Any, shared: Config, config: Config, scope: str) -> tuple[Any, Any]:
    """`electra.model.modeling.BertModel`: the table of words, and what the encoder makes."""
    given = _bert_inputs(config)
    with tf1.variable_scope("electra/embeddings", reuse=tf1.AUTO_REUSE):
        found, table = modeling.embedding_lookup(
            given["input_ids"], shared["vocab_size"], shared["embedding_size"]
        )
        found = modeling.embedding_postprocessor(
            found,
            use_token_type=True,
            token_type_ids=given["token_type_ids"],
            token_type_vocab_size=shared["type_vocab_size"],
            max_position_embeddings=shared["max_position_embeddings"],
            dropout_prob=0.0,
        )
    with tf1.variable_scope(scope):
        if found.shape[-1] != config["hidden_size"]:
            found = tf1.layers.dense(found, config["hidden_size"], name="embeddings_project")
        with tf1.variable_scope("encoder"):
            mask = modeling.create_attention_mask_from_input_mask(
                given["token_type_ids"], given["input_mask"]
            )
            sizes = ("num_hidden_layers", "num_attention_heads", "intermediate_size")
            found = modeling.transformer_model(
                found,
                mask,
                hidden_size=config["hidden_size"],
                intermediate_act_fn=_gelu,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                **{size: config[size] for size in sizes},
            )
    return table, found


def gpt2(config: Config) -> Outputs:
    """A language model."""
    from gpt_2_simple.src import model

    sizes = ("n_ctx", "n_embd", "n_head", "n_layer")
    settings = model.HParams(config["vocab_size"], **{size: config[size] for size in sizes})
    return {"logits": model.model(settings, tf.constant(inputs(config)["ids"]))["logits"]}


def t5(config: Config) -> Outputs:
    """An encoder and a decoder; `v1_1` is `t5.1.1.*.gin`, else `t5.1.0.*.gin`."""
    import mesh_tensorflow as mtf
    from mesh_tensorflow.transformer import transformer, transformer_layers

    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    model = transformer.Bitransformer(
        *(
            _t5_stack(transformer, transformer_layers, config, name)
            for name in ("encoder", "decoder")
        )
    )
    batch, length = mtf.Dimension("batch", BATCH), mtf.Dimension("length", LENGTH)
    given = {
        name: mtf.import_tf_tensor(mesh, tf.constant(array), mtf.Shape([batch, length]))
        for name, array in inputs(config).items()
        if name.endswith("ids")
    }
    logits, _ = model.call_simple(
        given["ids"],
        given["decoder_ids"],
        compute_loss=False,
        mode="eval",
    )
    names = {v.name: v.shape.to_integer_list for v in graph.all_variables}
    if config.get("headers"):  # 11 billion weights are not to be made
        return {"headers": names}
    placed = mtf.placement_mesh_impl.PlacementMeshImpl("", "", [""])
    lowering = mtf.Lowering(graph, {mesh: placed})
    found = lowering.export_to_tf_tensor(logits)
    return {"logits": found, "after": lowering.copy_masters_to_slices()}


def _t5_stack(transformer: Any, layers: Any, config: Config, name: str) -> Any:
    """An encoder or decoder as `t5.1.0.base.gin` configures it, and what it includes."""
    new, decodes = config.get("v1_1", False), name == "decoder"
    attention = {"num_heads": config["num_heads"], "key_value_size": config["d_kv"]}
    norm = transformer.sublayer_rms_norm if new else transformer.sublayer_legacy_rms_norm
    last = transformer.sublayer_rms_norm if new else transformer.sublayer_legacy_final_rms_norm
    activation = ["gelu", "linear"] if new else "relu"
    inner = [
        [layers.SelfAttention, {"relative_attention_type": "bias_shared", **attention}],
        *([[layers.EncDecAttention, attention]] if decodes else []),
        [layers.DenseReluDense, {"hidden_size": config["d_ff"], "activation": activation}],
    ]
    each = [norm, transformer.sublayer_call_layer, transformer.sublayer_residual]
    stack = transformer.make_layer_stack(
        inner, lambda made: transformer.LayerStack(made, [], each, [last]), config["num_layers"]
    )
    return transformer.Unitransformer(
        stack,
        d_model=config["d_model"],
        input_vocab_size=config["vocab_size"],
        output_vocab_size=config["vocab_size"] if decodes else None,
        autoregressive=decodes,
        max_length=512,
        shared_embedding_and_softmax_weights=not new,
        name=name,
        positional_embedding=False,
        vocab_divisor=1,
    )


FAMILIES: dict[str, Callable[[Config], Outputs]] = {
    "bert": bert,
    "bert_classifier": bert_classifier,
    "bert_squad": bert_squad,
    "albert": albert,
    "albert_classifier": albert_classifier,
    "albert_squad": albert_squad,
    "electra": electra,
    "electra_squad": electra_squad,
    "electra_task": electra_task,
    "gpt2": gpt2,
    "t5": t5,
}


def variables(family: str, config: Config) -> dict[str, tuple[str, list[int]]]:
    """Every variable of a model with dtype and shape; no value is made."""
    prepare()
    with tf.Graph().as_default():
        found = FAMILIES[family]({**config, "headers": True})
        if "headers" in found:
            return {name: ("float32", shape) for name, shape in found["headers"].items()}
        return {
            v.op.name: (v.dtype.base_dtype.name, v.shape.as_list()) for v in tf1.global_variables()
        }


def weights(name: str, shape: list[int], rng: np.random.Generator) -> Any:
    """Random values near those of a trained model, so that nothing saturates."""
    values = rng.normal(size=shape) * 0.4
    return (values + 1 if name.endswith(("gamma", "scale", "/g")) else values).astype(np.float32)


def run(family: str, config: Config, checkpoint: str, out: str) -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        outputs = FAMILIES[family](config)
        rng = np.random.default_rng(len(family))
        kept = [v for v in tf1.global_variables() if "_slice_" not in v.name]
        for variable in kept:
            variable.load(weights(variable.op.name, variable.shape.as_list(), rng), session)
        if "after" in outputs:
            session.run(outputs.pop("after"))
        if family != "gpt2":  # OpenAI's has none
            kept.append(tf1.train.create_global_step())
            session.run(kept[-1].initializer)
        tf1.train.Saver(kept).save(session, checkpoint, write_meta_graph=False)
        oracles.save_arrays(Path(out), dict(session.run(outputs)))


def main(path: str) -> None:
    prepare()
    tf1.disable_eager_execution()
    tf1.logging.set_verbosity("ERROR")
    for job in json.loads(Path(path).read_text("utf-8")):
        run(**job)


if __name__ == "__main__":
    main(*sys.argv[1:])
