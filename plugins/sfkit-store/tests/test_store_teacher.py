"""The teacher ``store:<folder>``: the online run's targets, and nothing of another student's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sfkit_store import Store, StoreError, StoreTeacher
from sfkit_store.encoding import decoded, encoded
from sfkit_store.shards import shard_files

from sfkit import SpatialForcing
from sfkit.errors import ConfigError, TrustError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.testing.tiny import PatchTeacher, TinyPolicy
from sfkit.views.types import FeatureMap

STEPS = ([0, 7, 3], [11, 2, 8], [5, 6, 4])


def trained(policy: Any, batches: list[dict[str, Any]]) -> tuple[list[float], list[torch.Tensor]]:
    """Losses, and gradients of the first step, of some steps."""
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    losses, gradients = [], []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            gradients = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients


@pytest.fixture
def batches(tiny: SimpleNamespace) -> list[dict[str, Any]]:
    return [tiny.batch_of(step) for step in STEPS]


def test_training_is_that_of_the_online_teacher(folder: Path, wrapped: Callable[..., Any], batches: list) -> None:
    online = trained(wrapped(PatchTeacher(), teacher_layer=2), batches)
    stored = trained(wrapped(f"store:{folder}", teacher_layer=2), batches)
    assert stored[0] == pytest.approx(online[0], rel=1e-6)
    for one, other in zip(stored[1], online[1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_dtypes_keep_loss_and_gradients(
    dtype: str, tiny: SimpleNamespace, tmp_path: Path, wrapped: Callable[..., Any], batches: list
) -> None:
    tiny.build(tmp_path, dtype=dtype)
    online, stored = (
        trained(wrapped(each, teacher_layer=3), batches) for each in (PatchTeacher(), f"store:{tmp_path}")
    )
    # A feature is off by one part in 256, or in 254 of the largest of its token; the cosine of tokens by less.
    assert stored[0] == pytest.approx(online[0], rel=1 / 256)
    one, other = (torch.cat([gradient.flatten() for gradient in each[1]]) for each in (stored, online))
    assert float((one - other).norm() / other.norm()) < 1 / 64
    assert not torch.equal(one, other)


def test_what_is_stored_is_within_the_rounding_of_its_dtype() -> None:
    values = torch.randn(3, 2, 4, 4, 16) * torch.logspace(-3, 3, 16)
    values[0, 0, 0, 0] = 0
    mask = torch.rand(3, 2, 4, 4) < 0.8
    values[~mask] = torch.nan
    clean = torch.where(mask[..., None], values, 0)
    exact, half, eighth = (
        decoded(encoded(FeatureMap(values, mask), dtype)) for dtype in ("float32", "bfloat16", "int8")
    )
    assert torch.equal(exact.values, clean)
    assert torch.equal(half.values, clean.bfloat16().float())
    step = clean.abs().amax(-1, keepdim=True) / 127
    assert bool(((eighth.values - clean).abs() <= step * 0.501).all())
    assert all(torch.equal(each.mask, mask) for each in (exact, half, eighth))


def test_identity_and_license_are_the_stored_teachers(folder: Path) -> None:
    teacher = StoreTeacher({"path": str(folder)})
    assert teacher.identity == PatchTeacher().identity
    assert teacher.license == "Apache-2.0"
    assert (teacher.num_layers, teacher.default_layer, teacher.dim(2)) == (3, 3, 12)


def test_a_noncommercial_license_stays_one(tiny: SimpleNamespace, tmp_path: Path) -> None:
    class Restricted(PatchTeacher):
        license = "CC-BY-NC-4.0"

    tiny.build(tmp_path, teacher=Restricted())
    assert StoreTeacher({"path": str(tmp_path)}).noncommercial


def test_a_checkpoint_has_the_identity_and_no_path(
    folder: Path, tmp_path: Path, wrapped: Callable[..., Any], tiny: SimpleNamespace
) -> None:
    policy = wrapped(f"store:{folder}")
    policy.spatial_forcing.save(tmp_path / "saved")
    texts = [path.read_text() for path in (tmp_path / "saved").rglob("*") if path.suffix in (".json", ".md")]
    assert texts
    assert not any(str(tmp_path) in text for text in texts)
    assert any('"name": "patch"' in text for text in texts)
    plain = TinyPolicy()
    with pytest.raises(TrustError, match="path lay on the machine that saved it"):
        SpatialForcing.from_pretrained(plain, tmp_path / "saved", adapter=tiny.Adapter(plain))


def test_a_checkpoint_resumes_with_the_store_it_was_trained_with(
    folder: Path, tmp_path: Path, wrapped: Callable[..., Any], tiny: SimpleNamespace
) -> None:
    wrapped(f"store:{folder}").spatial_forcing.save(tmp_path / "saved")
    (config,) = (tmp_path / "saved").rglob("config.json")
    name = next(part for part in config.read_text().split('"') if part.startswith("store:sha256:"))
    tiny.build(folder, tiny.Frames(18))  # a dataset that grew leaves the recipe as it is
    tiny.build(tmp_path / "other", dtype="int8")
    for place, fits in ((folder, True), (tmp_path / "other", False)):
        policy = TinyPolicy()
        options = {"adapter": tiny.Adapter(policy), "options": {name: {"path": str(place)}}}
        if fits:
            SpatialForcing.from_pretrained(policy, tmp_path / "saved", **options)
        else:
            with pytest.raises(TrustError, match="is not what"):
                SpatialForcing.from_pretrained(policy, tmp_path / "saved", **options)


def views_of(tiny: SimpleNamespace, indices: list[int], **changes: Any) -> Any:
    adapter = tiny.Frames().adapter
    return replace(adapter.views(ForwardCall({"batch": tiny.batch_of(indices)}, None)), **changes)


def encode(
    folder: Path, views: Any, layers: tuple[int, ...] = (2,), grid: tuple[int, int] = (4, 4), **options: Any
) -> Any:
    return StoreTeacher({"path": str(folder), **options}).encode(None, views, layers, grid)


def test_fault_25_cameras_in_another_order_are_an_error(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [0]).select(torch.tensor([0]), [1, 0])
    with pytest.raises(StoreError, match=r"has cameras \('cam0', 'cam1'\), and the student has \('cam1', 'cam0'\)"):
        encode(folder, views)


def test_fault_37_another_student_is_refused_with_both_values(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [0])
    with pytest.raises(StoreError, match=r"a grid of \(4, 4\), and the student has \(8, 8\)"):
        encode(folder, views, grid=(8, 8))
    small = replace(views, images=views.images[..., :16, :16], valid=views.valid[..., :16, :16], depth=None)
    with pytest.raises(StoreError, match=r"views of .* \(32, 32\), and the student has \(16, 16\)"):
        encode(folder, small)


def test_fault_37_a_layer_that_is_not_stored_stops_wrap(folder: Path, wrapped: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="holds teacher layers 2, 3, not 1"):
        wrapped(f"store:{folder}", teacher_layer=1)


def test_fault_37_another_dataset_is_refused_with_both_names(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [0], keys=(("lerobot/other@00", 0, 0),))
    with pytest.raises(StoreError, match="holds frames of local/toy, and the batch is of lerobot/other"):
        encode(folder, views)


def test_a_missing_frame_is_named_or_masked(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [3, 13, 4])
    with pytest.raises(
        StoreError, match=r"lacks frame 1 of episode 2 of local/toy .*, perhaps because the dataset grew"
    ):
        encode(folder, views)
    (found,) = encode(folder, views, missing="mask")
    assert found.mask.flatten(1).any(1).tolist() == [True, False, True]
    (alone,) = encode(folder, views_of(tiny, [4]))
    assert torch.equal(found.values[2:], alone.values)
    (none,) = encode(folder, views_of(tiny, [13]), missing="mask")
    assert none.values.shape == (1, 2, 4, 4, 12)
    assert not none.mask.any()


def test_a_masked_frame_does_not_enter_the_loss(
    tiny: SimpleNamespace, folder: Path, wrapped: Callable[..., Any]
) -> None:
    policy = wrapped(("store:" + str(folder), {"missing": "mask"}))
    loss, _ = policy(tiny.batch_of([0, 13]))
    assert math.isfinite(loss.item())


def test_a_batch_without_keys_says_how_to_get_them(tiny: SimpleNamespace, folder: Path) -> None:
    with pytest.raises(ViewsError, match=r"does not say which frames it holds(?s:.*)FrameKeys"):
        encode(folder, views_of(tiny, [0], keys=None))


def test_fault_27_other_pixels_than_the_teacher_saw_are_an_error(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [0, 1])
    turned = replace(views, images=views.images.flip(-1))
    with pytest.raises(
        StoreError, match=r"sees other pixels than the teacher saw .* cam0, cam1 of frame 0 of episode 0"
    ):
        encode(folder, turned)
    encode(folder, turned, pixels="any")
    encode(folder, replace(views, images=(views.images + 0.004).clamp(0, 1)))  # as decoders differ


def test_fault_27_pixels_are_compared_later_too(tiny: SimpleNamespace, folder: Path) -> None:
    teacher, views = StoreTeacher({"path": str(folder)}), views_of(tiny, [0])
    for _ in range(2):
        teacher.encode(None, views, (2,), (4, 4))
    turned = replace(views, images=views.images.flip(-1))
    for _ in range(47):
        teacher.encode(None, turned, (2,), (4, 4))
    with pytest.raises(StoreError, match="sees other pixels"):
        teacher.encode(None, turned, (2,), (4, 4))


def test_fault_38_features_are_found_by_frame_not_by_pixels(tiny: SimpleNamespace, folder: Path) -> None:
    views = views_of(tiny, [0, 7])
    brighter = replace(views, images=views.images * 0.5)
    (plain,), (found,) = encode(folder, views), encode(folder, brighter, pixels="any")
    assert torch.equal(plain.values, found.values)
    size = sum(path.stat().st_size for path in shard_files(folder / "shards"))
    assert size == Store(folder).bytes, "reading writes nothing"


def test_an_absent_camera_is_masked_as_online(
    tiny: SimpleNamespace, tmp_path: Path, wrapped: Callable[..., Any]
) -> None:
    teacher = PatchTeacher({"joint": True})
    present = {"present": torch.tensor([[True, False], [True, True]])}
    batch = {**tiny.batch_of([0, 1]), **present}
    views = tiny.Frames().adapter.views(ForwardCall({"batch": batch}, None))
    tiny.build(tmp_path, [views], teacher=teacher)
    online, stored = (trained(wrapped(each, teacher_layer=3), [batch]) for each in (teacher, f"store:{tmp_path}"))
    assert stored[0] == pytest.approx(online[0])
