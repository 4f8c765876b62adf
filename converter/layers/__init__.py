"""What layers compute, in NumPy, as each framework holds their weights.

A mapping's probe evaluates a layer twice: from the source's weights as the source's framework
does, and from the mapped weights as the target's does.  The conventions are those that the
frameworks document; the tests hold each against the real layer.
"""

from __future__ import annotations

from converter.layers import attention, convolutions, dense, norms, recurrent
from converter.layers.base import Convention, Layer, weights_of

__all__ = ["LAYERS", "Convention", "Layer", "weights_of"]

LAYERS: dict[str, Layer] = {
    **dense.LAYERS,
    **convolutions.LAYERS,
    **norms.LAYERS,
    **recurrent.LAYERS,
    **attention.LAYERS,
}
