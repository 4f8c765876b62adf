"""Named groups of tensors that are no weights: what training leaves in a checkpoint.

Names as TensorFlow's Saver, Estimators and BERT's optimizer write them.
"""

from __future__ import annotations

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "optimizer_slots": (
        "an optimizer's state",
        (
            "**/Momentum",
            "**/Adam",
            "**/Adam_1",
            "**/adam_m",
            "**/adam_v",
            "**/RMSProp",
            "**/RMSProp_1",
            "**/Adagrad",
            "**/Adadelta",
            "**/Adadelta_1",
            "**/Ftrl",
            "**/Ftrl_1",
            "**beta1_power",
            "**beta2_power",
        ),
    ),
    "counters": ("a training counter", ("global_step", "save_counter", "**/global_step")),
    "ema": ("a moving average of a weight", ("**/ExponentialMovingAverage",)),
}
