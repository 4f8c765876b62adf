"""A file of Keras 1 and what it was converted to, as Keras 2 loads them.

python -m tests.oracles.keras1 FOLDER

loads FOLDER/keras1.h5, which it converts on its own, and FOLDER/keras2.h5 by the names of layers,
and writes the weights of both models, in order, to keras1.npz and keras2.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tf_keras
from tf_keras import layers as kl

from tests.oracles import save_arrays

NAMES = {  # of layers in Keras 1 and 2
    "keras1": ("convolution2d_1", "lstm_1", "gru_1", "dense_1"),
    "keras2": ("conv2d_1", "lstm_1", "gru_1", "dense_1"),
}


def model(conv: str, lstm: str, gru: str, dense: str) -> tf_keras.Model:
    """Layers beside each other; nothing is run."""
    image, steps = tf_keras.Input((3, 8, 8)), tf_keras.Input((5, 4))
    outputs = [
        kl.Conv2D(6, (2, 5), data_format="channels_first", name=conv)(image),
        kl.LSTM(3, name=lstm)(steps),
        kl.GRU(3, reset_after=False, name=gru)(steps),
        kl.Dense(2, name=dense)(steps),
    ]
    return tf_keras.Model([image, steps], outputs)


def main() -> None:
    folder = Path(sys.argv[1])
    for name, layers in NAMES.items():
        made = model(*layers)
        made.load_weights(folder / f"{name}.h5", by_name=True)
        arrays = (array for layer in layers for array in made.get_layer(layer).get_weights())
        save_arrays(folder / f"{name}.npz", {f"{n}": array for n, array in enumerate(arrays)})


if __name__ == "__main__":
    main()
