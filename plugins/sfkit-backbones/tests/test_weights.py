"""Loading checkpoints: strictly, lazily, and never by running what is in them."""

from __future__ import annotations

import argparse
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sfkit_backbones import files, weights
from sfkit_backbones.blocks import Block, cast_products
from sfkit_backbones.weights import load_weights, without_weights
from torch import nn
from torch.torch_version import TorchVersion

from sfkit.errors import CheckpointError

needs_safe_pickles = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.6", reason="this torch reads no pickle, see fault 58"
)


def backbone() -> Block:
    return Block(8, 2, 16, eps=1e-6)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    own = {f"body.{key}": torch.randn(t.shape, generator=generator) for key, t in backbone().state_dict().items()}
    return {**own, "head.weight": torch.randn(3, 3)}


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def load(path: Path, network: nn.Module | None = None, **options: object) -> nn.Module:
    if network is None:
        with without_weights():
            network = backbone()
    load_weights(network, path, **{"prefix": "body.", "ignored": ("head.*",), **options})  # type: ignore[arg-type]
    return network


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    state = load_file(path)
    change(state)
    save_file(state, path)
    return path


def test_tensors_arrive_as_they_are_stored(checkpoint: Path, state: dict[str, torch.Tensor]) -> None:
    loaded = load(checkpoint)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in loaded.parameters())
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[f"body.{key}"])


def test_they_take_the_dtype_that_the_network_was_given(checkpoint: Path) -> None:
    with without_weights():
        network = backbone()
    cast_products(network, torch.bfloat16)
    loaded = load(checkpoint, network).state_dict()
    assert loaded["mlp.fc1.weight"].dtype == torch.bfloat16
    assert loaded["norm1.weight"].dtype == torch.float32


@needs_safe_pickles
def test_a_pytorch_file_is_read_too(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    for name, content in (("bare.pt", state), ("wrapped.pth", {"model": state})):
        torch.save(content, tmp_path / name)
        loaded = load(tmp_path / name)
        assert torch.equal(loaded.state_dict()["attn.proj.bias"], state["body.attn.proj.bias"])
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "old.pt").state_dict()["ls1.gamma"], state["body.ls1.gamma"])


def test_only_what_is_needed_is_read(
    checkpoint: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = files.SafeTensorFile.get
    monkeypatch.setattr(files.SafeTensorFile, "get", lambda self, key: read.append(key) or real(self, key))
    monkeypatch.setattr(weights, "_SHARE", 200)
    done: list[int] = []
    load(checkpoint, advance=done.append)
    assert sorted(read) == sorted(key for key in state if key.startswith("body."))
    assert sum(done) == sum(value.numel() * 4 for key, value in state.items() if key.startswith("body."))


def test_fault_29_missing_unexpected_misshapen_are_all_named(checkpoint: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["body.attn.extra"] = state.pop("body.norm1.weight")
        state["body.mlp.fc1.bias"] = torch.zeros(7)

    with pytest.raises(CheckpointError) as caught:
        load(rewrite(checkpoint, spoil))
    for part in (
        "missing (1): body.norm1.weight",
        "unexpected (1): body.attn.extra",
        "wrong shape (1): body.mlp.fc1.bias is (7,), expected (16,)",
    ):
        assert part in str(caught.value)


def test_fault_29_a_renamed_prefix_loads_nothing(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(14\): backbone\.attn"):
        load(checkpoint, prefix="backbone.")


def test_fault_29_nothing_is_loaded_where_anything_is_wrong(checkpoint: Path) -> None:
    network = backbone()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="Nothing was loaded"):
        load(rewrite(checkpoint, lambda state: state.pop("body.norm1.weight")), network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_nan_in_a_file_is_noticed(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'body\.norm2\.bias' holds NaN"):
        load(rewrite(checkpoint, lambda state: state["body.norm2.bias"].fill_(torch.nan)))


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt", marks=needs_safe_pickles)])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_truncated_file_says_so(tmp_path: Path, state: dict[str, torch.Tensor], suffix: str, keep: float) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load(path)


def test_garbage_says_so(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.pt"):
        (tmp_path / name).write_bytes(b"<html>404</html>" * 100)
        with pytest.raises(CheckpointError):
            load(tmp_path / name)


class Bomb:
    """Would write a file if it were unpickled by code that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@needs_safe_pickles
def test_pickles_are_not_run(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state, "args": Bomb(tmp_path / "harm")}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError, match="could run any code"):
        load(tmp_path / "bomb.pth")
    assert not (tmp_path / "harm").exists()


@needs_safe_pickles
def test_a_namespace_of_arguments_is_refused_with_the_way_out(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, tmp_path / "train.pth")
    with pytest.raises(CheckpointError, match=r"argparse namespace(.|\n)*safetensors file of the same model"):
        load(tmp_path / "train.pth")


@pytest.mark.parametrize("release", ["2.2.0", "2.5.1+cu124", "2.6.0a0+git1234"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_fault_58_no_pickle_is_read_before_torch_2_6(
    release: str, suffix: str, tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There ``weights_only=True`` could be made to run code (CVE-2025-32434)."""
    path = tmp_path / f"model{suffix}"
    torch.save(state, path)

    def read(*args: object, **options: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(torch, "__version__", TorchVersion(release))
    monkeypatch.setattr(torch, "load", read)
    with pytest.raises(CheckpointError, match=r"is a pickle, and in torch 2\.(.|\n)*Upgrade to torch 2\.6"):
        load(path)


def test_fault_58_safetensors_are_read_by_any_torch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.2.0"))
    load(checkpoint)


def test_fault_58_torch_load_is_called_in_one_place() -> None:
    """Whoever calls it elsewhere passes by the check."""
    ours = re.compile(r"sfkit|lerobot_policy_spatial_forcing")
    packages = [
        Path(found.module_finder.path) / found.name for found in pkgutil.iter_modules() if ours.match(found.name)
    ]
    sources = [path for package in packages for path in package.rglob("*.py")]
    assert any(path.name == "checkpoint.py" for path in sources)
    callers = [path for path in sources if re.search(r"torch\.load\(|\bpickle\.load\(|Unpickler", path.read_text())]
    assert callers == [Path(files.__file__)]


@needs_safe_pickles
def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load(tmp_path / "list.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    for name, text in (("model.onnx", "unknown kind"), ("none.pt", "no file")):
        with pytest.raises(CheckpointError, match=re.escape(text)):
            load(tmp_path / name)
