"""Move trained weights between frameworks by declarative mapping files.

    slim = converter.open("vgg_16.ckpt")                    # headers only; a Mapping[str, Tensor]
    port = converter.mapping("vgg16/slim-torchvision")      # a shipped name, or a path
    converter.save(port(slim), "vgg16.safetensors")         # streams; the port itself is lazy
"""

__version__ = "0.1.0"
