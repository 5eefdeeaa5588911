"""What all teachers with a network share: preparation, loading, order, memory and licenses."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfkit import SpatialForcing
from sfkit.errors import CheckpointError, ConfigError, ShapeError, TeacherMemoryError, ViewsError
from sfkit.testing.checks import assert_rounded
from sfkit.testing.tiny import TinyAdapter, TinyPolicy, tiny_batch
from sfkit.training.teacher_runner import TeacherRunner
from sfkit.views.types import FeatureMap, Views

CPU = torch.device("cpu")


def views(b: int = 2, v: int = 3, size: tuple[int, int] = (16, 16), seed: int = 0) -> Views:
    images = torch.rand(b, v, 3, *size, generator=torch.Generator().manual_seed(seed))
    return Views(images, torch.ones(b, v, *size, dtype=torch.bool), tuple("abcdef"[:v]))


def run(teacher: Any, seen: Views, layers: Sequence[int] = (2,)) -> list[FeatureMap]:
    return TeacherRunner(teacher).features(seen, layers, (4, 4))


def seen_by(teacher: Any, seen: Views) -> Tensor:
    """The prepared images that reach the backbone."""
    caught: list[Tensor] = []
    real = type(teacher).features

    def features(self: Any, backbone: Any, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        caught.append(images)
        return real(self, backbone, images, layers)

    with mock.patch.object(type(teacher), "features", features):
        run(teacher, seen)
    return torch.cat(caught)


def test_micro_batches_give_the_same_features(small_teacher: Any) -> None:
    seen = views(5)
    (whole,) = run(small_teacher({"config": "tiny"}), seen)
    for count in (1, 2, 5, 9):
        (parts,) = run(small_teacher({"config": "tiny", "micro_batch": count}), seen)
        assert_rounded(parts.values, whole.values)


def test_layers_come_in_the_requested_order(small_teacher: Any) -> None:
    teacher, seen = small_teacher({"config": "tiny"}), views()
    one, two = run(teacher, seen, (1, 2))
    again_two, again_one = run(teacher, seen, (2, 1))
    assert torch.equal(one.values, again_one.values)
    assert torch.equal(two.values, again_two.values)


def test_view_order_sets_the_first_view_and_not_the_output_order(small_teacher: Any) -> None:
    seen = views()
    swapped = seen.select(torch.arange(2), [2, 0, 1])
    (wanted,) = run(small_teacher({"config": "tiny"}), swapped)
    (found,) = run(small_teacher({"config": "tiny", "view_order": ("c",)}), seen)
    assert torch.equal(found.values, wanted.values[:, [1, 2, 0]])
    (default,) = run(small_teacher({"config": "tiny"}), seen)
    assert not torch.allclose(found.values, default.values, atol=1e-3)


def test_the_first_camera_may_be_absent_but_not_unknown(small_teacher: Any) -> None:
    seen = views()
    seen.valid[0, 2] = False
    teacher = small_teacher({"config": "tiny", "view_order": ("c", "b")})
    (found,) = run(teacher, seen)
    (alone,) = run(small_teacher({"config": "tiny"}), seen.select(torch.tensor([0]), [1, 0]))
    assert_rounded(found.values[0, [1, 0]], alone.values[0])
    with pytest.raises(ConfigError, match="'d' is no view of this policy"):
        run(small_teacher({"config": "tiny", "view_order": ("d",)}), seen)


def test_the_students_letterbox_is_filled_unless_kept(small_teacher: Any) -> None:
    seen = views(1, 1)
    seen.valid[..., :4, :] = False
    assert bool((seen_by(small_teacher({"config": "tiny"}), seen)[..., :4, :] == 1).all())
    assert bool((seen_by(small_teacher({"config": "tiny", "fill": 0.5}), seen)[..., :4, :] == 0.5).all())
    kept = seen_by(small_teacher({"config": "tiny", "keep_letterbox": True}), seen)
    assert torch.equal(kept, seen.images)


def test_fault_19_a_view_that_is_not_square_keeps_its_aspect(small_teacher: Any) -> None:
    teacher = small_teacher({"config": "tiny"})
    (found,) = run(teacher, views(size=(12, 16)))
    assert found.grid == (3, 4)
    (found,) = run(teacher, views(size=(60, 30)))
    assert found.grid == (4, 2)


def test_fault_26_images_out_of_range_are_refused(small_teacher: Any) -> None:
    for change in (lambda x: x * 2 - 1, lambda x: x * 255, lambda x: x * torch.nan):
        seen = views()
        wrong = Views(change(seen.images), seen.valid, seen.names)
        with pytest.raises(ViewsError, match=r"expected \[0, 1\]"):
            run(small_teacher({"config": "tiny"}), wrong)


def test_images_that_are_not_there_are_refused() -> None:
    for nobody in ({"v": 0}, {"b": 0}):
        with pytest.raises(ShapeError, match=r"Views.images has shape .*expected \(b, v, 3, h, w\)"):
            views(**nobody)


@pytest.mark.parametrize("layers", [(0,), (3,), (1, -1), ()])
def test_unknown_layers_are_refused(small_teacher: Any, layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"has no layer(.|\n)*1 to 2"):
        run(small_teacher({"config": "tiny"}), views(), layers)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 18}, r"multiples of 4, not 18(.|\n)*size=16"),
        ({"size": 1}, r"size=4"),
        ({"config": "tinny"}, "Did you mean 'tiny'"),
        ({"sise": 16}, "Did you mean 'size'"),
        ({"dtype": "float8"}, "dtype"),
    ],
)
def test_wrong_options_are_errors(small_teacher: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small_teacher(options)


def full_checkpoint(teacher: Any, path: Path) -> Path:
    state = {f"backbone.{key}": torch.randn_like(value) for key, value in teacher.build().state_dict().items()}
    save_file({**state, "head.weight": torch.zeros(2)}, path)
    return path


def test_weights_come_from_a_file_in_the_dtype_of_the_run(small_teacher: Any, tmp_path: Path) -> None:
    path = full_checkpoint(small_teacher(), tmp_path / "model.safetensors")
    backbone = small_teacher({"weights": str(path)}).load(CPU)
    assert backbone.patch_embed.proj.weight.dtype == torch.float32
    coarse = small_teacher({"weights": str(path), "dtype": "bfloat16"}).load(CPU)
    assert coarse.patch_embed.proj.weight.dtype == torch.bfloat16
    assert torch.equal(coarse.first_view, backbone.first_view)


def test_fault_29_weights_of_another_size_are_refused(small_teacher: Any, tmp_path: Path) -> None:
    path = full_checkpoint(small_teacher({"config": "tiny"}), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="wrong shape"):
        small_teacher({"weights": str(path)}).load(CPU)
    assert small_teacher({"weights": str(path), "config": "tiny"}).load(CPU)


def test_fault_51_building_and_loading_keep_the_random_state(small_teacher: Any) -> None:
    before = torch.get_rng_state()
    small_teacher({"config": "tiny"}).load(CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_the_estimate_is_logged_before_loading(small_teacher: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sfkit")
    run(small_teacher({"config": "tiny"}), views())
    assert "loading teacher 'small': 0.0 MiB of weights and about 0.0 MiB while it runs" in caplog.messages[0]
    assert "random weights" in caplog.messages[1]


def test_the_estimate_follows_size_batch_and_dtype(small_teacher: Any) -> None:
    def estimate(b: int = 8, **options: Any) -> Any:
        return small_teacher(options).memory((b, 2, 16, 16), [2], CPU)

    plain = estimate()
    backbone = small_teacher().build()
    assert plain.weights == sum(p.numel() * 4 for p in backbone.parameters())
    assert estimate(dtype="bfloat16").weights < plain.weights
    assert estimate(size=32).working == 4 * plain.working
    assert estimate(micro_batch=2).working * 4 == plain.working


def test_running_out_of_memory_names_the_options_that_help(small_teacher: Any) -> None:
    class Greedy(small_teacher):
        def features(self, *args: Any) -> list[Tensor]:
            return [torch.empty(2**60)]

    with pytest.raises(TeacherMemoryError, match=r"running teacher 'small'(.|\n)*micro_batch=1.*size=8 \(now 16\)"):
        run(Greedy({"config": "tiny"}), views())


def test_other_errors_are_not_taken_for_it(small_teacher: Any) -> None:
    class Broken(small_teacher):
        def features(self, *args: Any) -> list[Tensor]:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(Broken({"config": "tiny"}), views())


def test_a_noncommercial_license_is_logged_once_and_published(
    small_teacher: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = full_checkpoint(small_teacher(), tmp_path / "model.safetensors")
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, small_teacher({"weights": str(path)}), adapter=TinyAdapter(policy))
    said = [message for message in caplog.messages if "non-commercial" in message]
    assert len(said) == 1
    assert "'small'" in said[0]
    assert "CC-BY-NC-4.0" in said[0]
    policy(tiny_batch())
    assert sum("non-commercial" in message for message in caplog.messages) == 1
    policy.spatial_forcing.save(tmp_path)
    record = json.loads((tmp_path / "spatial_forcing" / "config.json").read_text())
    weights = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert record["teachers"] == [{"name": "small", "license": "CC-BY-NC-4.0", "weights": weights}]
    readme = (tmp_path / "spatial_forcing" / "README.md").read_text()
    assert "non-commercial" in readme


def test_random_weights_have_no_license(small_teacher: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    policy = TinyPolicy()
    SpatialForcing.wrap(policy, small_teacher({"config": "tiny"}), adapter=TinyAdapter(policy))
    assert not any("non-commercial" in message for message in caplog.messages)
    policy.spatial_forcing.save(tmp_path)
    assert "non-commercial" not in (tmp_path / "spatial_forcing" / "README.md").read_text()


def test_the_official_weights_are_recorded_with_their_revision(small_teacher: Any) -> None:
    assert small_teacher().identity["weights"] == "owner/small"
    assert small_teacher({"revision": "abc"}).identity["weights"] == "owner/small@abc"


def test_compiled_blocks_give_the_same(small_teacher: Any) -> None:
    seen = views()
    (plain,) = run(small_teacher({"config": "tiny"}), seen)
    with mock.patch("torch.nn.Module.compile", autospec=True) as compiled:
        run(small_teacher({"config": "tiny", "compile": True}), seen)
    assert [type(call.args[0]).__name__ for call in compiled.call_args_list] == ["Block", "Block"]
    assert plain.values.isfinite().all()
