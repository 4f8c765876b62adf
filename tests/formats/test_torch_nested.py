"""The weights inside larger checkpoints: paths, objects of other libraries, TorchScript."""

import argparse
import collections
import warnings
import zipfile

import numpy as np
import pytest

from converter import formats
from converter.errors import NotFoundError
from converter.tensors import LazyTensors, from_arrays


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def arrays(checkpoint):
    return {name: tensor.numpy().tolist() for name, tensor in checkpoint.items()}


# ── parts of a checkpoint ────────────────────────────────────────────────────────────────────────


def nested():
    one = np.ones(2)
    return from_arrays(
        {"a.x": one, "a.y.z": one * 2, "ab.x": one * 3, "b/x": one * 4, "b/y/z": one * 5, "c": one},
        ties=(("a.x", "ab.x"), ("a.x", "a.y.z", "c")),
        unsupported={"a.epoch": "int 3", "d": "int 4"},
        metadata={"k": "v"},
    )


def test_a_part_has_the_names_below_its_path():
    part = nested().under("a")
    assert arrays(part) == {"x": [1, 1], "y.z": [2, 2]}
    assert part.ties == (("x", "y.z"),)
    assert part.unsupported == {"epoch": "int 3"}
    assert part.metadata == {"k": "v"}
    assert list(part.specs) == list(part) == ["x", "y.z"]
    assert part.nbytes == 32
    assert "x" in part
    assert "a.x" not in part
    assert len(part) == 2
    with pytest.raises(NotFoundError, match=r"no such tensor \(tensor 'a\.x'\)"):
        part["a.x"]


def test_parts_of_parts_and_either_mark():
    whole = nested()
    for path in ("a.y", "a.y.", "b/y", "b/y/"):
        assert list(whole.under(path)) == ["z"]
    assert arrays(whole.under("a").under("y")) == {"z": [2, 2]}
    assert list(whole.under("b")) == ["x", "y/z"]


@pytest.mark.parametrize("path", ["", ".", "/", "x", "c", "a.x", "A", "d"])
def test_a_path_without_tensors(path):
    with pytest.raises(NotFoundError, match=r"(?s)no tensor under .*expected: a, ab$"):
        nested().under(path)


def test_lazy_tensors_are_a_mapping():
    lazy = LazyTensors({}, lambda name: None)
    assert dict(lazy) == {}
    assert lazy.get("a") is None


@pytest.mark.oracle
def test_opening_a_part(torch, tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"w": weight}, "epoch": 3}, tmp_path / "x.pth")
    with formats.open_checkpoint(tmp_path / "x.pth", select="state_dict") as part:
        assert arrays(part) == {"w": weight.tolist()}
        assert part.format == "torch"
        assert part["w"].extent is not None
    with pytest.raises(NotFoundError, match=r"(?s)under 'model'.*expected: state_dict") as caught:
        formats.open_checkpoint(tmp_path / "x.pth", select="model")
    assert caught.value.path == tmp_path / "x.pth"


# ── what trainers save ───────────────────────────────────────────────────────────────────────────


class AttributeDict(dict):
    """As Lightning keeps hyperparameters."""


class Config:
    """As configuration libraries have them."""

    def __init__(self, **content):
        self.__dict__.update(content)


@pytest.mark.oracle
def test_a_lightning_checkpoint(torch, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 1,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict(
            {f"model.{name}": value for name, value in model.state_dict().items()}
        ),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"Checkpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "config",
        "hyper_parameters": AttributeDict(lr=0.1, args=argparse.Namespace(a=1)),
    }
    torch.save(saved, tmp_path / "last.ckpt")
    with formats.open_checkpoint(tmp_path / "last.ckpt") as checkpoint:
        assert "optimizer_states.0.state.0.exp_avg" in checkpoint
        assert "callbacks.Checkpoint{'monitor': 'loss'}.best_model_score" in checkpoint
        hyper = f"object of {__name__}.AttributeDict"
        assert checkpoint.unsupported["hyper_parameters"] == hyper
        assert checkpoint.unsupported["pytorch-lightning_version"] == "str '2.4.0'"
        part = checkpoint.under("state_dict")
        assert list(part) == list(saved["state_dict"])
        for name, tensor in saved["state_dict"].items():
            assert np.array_equal(part[name].numpy(), tensor.numpy())


@pytest.mark.oracle
def test_tensors_inside_unknown_objects(torch, tmp_path):
    saved = {
        "ema": Config(decay=0.9, shadow={"w": torch.ones(2)}, plain=[1]),
        "out": AttributeDict(logits=torch.zeros(1)),
    }
    torch.save(saved, tmp_path / "x.pt")
    with formats.open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert arrays(checkpoint) == {"ema.shadow.w": [1, 1], "out.logits": [0]}
        assert checkpoint.unsupported == {
            "ema": f"object of {__name__}.Config: its tensors are read",
            "ema.decay": "float 0.9",
            "ema.plain": "list of 1",
            "out": f"object of {__name__}.AttributeDict: its tensors are read",
        }


@pytest.mark.oracle
def test_a_special_tensor_inside_a_module_is_listed(torch, tmp_path):
    module = torch.nn.Module()
    module.register_buffer("dense", torch.ones(1))
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    torch.save(module, tmp_path / "x.pt")
    with formats.open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert list(checkpoint) == ["dense"]
        reason = "object of torch._utils._rebuild_sparse_tensor"
        assert checkpoint.unsupported["sparse"] == reason


# ── TorchScript ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.oracle
@pytest.mark.parametrize("trace", [False, True])
def test_torchscript(torch, tmp_path, trace):
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.PReLU())).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but there are files
        traced = torch.jit.trace(model, torch.ones(1, 3, 8, 8)) if trace else None
        script = traced if trace else torch.jit.script(model)
        script.save(str(tmp_path / "x.pt"))
    expected = model.state_dict()
    if trace:  # it leaves out what the computation does not use
        expected.pop("1.num_batches_tracked")
    with formats.open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.format == "torch"
        found = {name: tensor.numpy() for name, tensor in checkpoint.items()}
        assert found.keys() - {"1.num_batches_tracked"} == expected.keys() - {
            "1.num_batches_tracked"
        }
        for name, tensor in expected.items():
            assert np.array_equal(found[name], tensor.numpy())
        assert checkpoint.unsupported["code/"].startswith("a TorchScript program")


def test_constants_of_a_program_are_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02c__torch__\nNet\n)\x81}b.")
        archive.writestr("x/code/__torch__.py", b"import os; os.system('touch canary')")
        archive.writestr("x/constants/0", bytes(4))
    with formats.open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert dict(checkpoint) == {}
        assert checkpoint.unsupported == {
            "value": "object of __torch__.Net",
            "code/": "a TorchScript program: its parameters and buffers are read",
            "constants/": "1 tensors that are constants of the program",
        }
