"""GR00T N1.7 (``lerobot.policies.groot``): a Qwen3-VL whose prompt the preprocessor has made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sfkit.config import Options
from sfkit.errors import AdapterError, ViewsError
from sfkit.policies.base import ForwardCall
from sfkit.registry.component import Harmless
from sfkit.views.types import Views
from sfkit_lerobot.base import LeRobotOptions
from sfkit_lerobot.image_geometry import ImageGeometry
from sfkit_lerobot.image_tokens import ImageTokenAdapter, Prompt, every
from sfkit_lerobot.letterbox import Size
from sfkit_lerobot.normalization import Batch
from sfkit_lerobot.qwen import Patches, pictures_of

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig


class GrootOptions(LeRobotOptions):
    """Options of the adapter of GR00T."""

    views: Harmless[tuple[str, ...]] = Field(
        default=(), description="Cameras in the order of the prompt; by default that of LeRobot's preprocessor."
    )
    pixel_mean: tuple[float, float, float] = Field(
        default=(0.5, 0.5, 0.5), description="What the backbone's image processor subtracts."
    )
    pixel_std: tuple[float, float, float] = Field(
        default=(0.5, 0.5, 0.5), description="What the backbone's image processor divides by."
    )


class GrootAdapter(ImageTokenAdapter):
    """The batch holds the prompt and the patches: the preprocessor has consumed the images.

    So the views are put together again from the patches, which are what the policy sees. How they were cut out of the
    dataset's images (needed for depth and intrinsics only) is in the checkpoint's ``processor_config.json``. A random
    crop, which the preprocessor draws in training for checkpoints with ``use_albumentations``, leaves no trace: then
    the views have no geometry. With several frames, the last one is aligned.

    The residual stream includes what Qwen3-VL adds to visual tokens behind its first blocks (deepstack).
    """

    name = "groot"
    decoder_path = "_groot_model.backbone.model.model.language_model"
    Options: ClassVar[type[Options]] = GrootOptions
    options: GrootOptions

    def _read_policy(self) -> None:
        self._settings = _PictureSettings(self.policy.config)
        self._names = self.options.views or self._settings.order(self.policy.config.image_features)
        unknown = [name for name in self._names if name not in self.policy.config.image_features]
        if unknown:
            raise AdapterError(
                f"GR00T has no camera {', '.join(unknown)}.",
                f"Its cameras are {', '.join(self.policy.config.image_features)}.",
            )

    def unfreeze_hint(self) -> str:
        return "tune_llm=True, tune_visual=True, or tune_top_llm_layers=N with a layer after the first of these"

    def prompt(self, batch: Batch) -> Prompt:
        if "pixel_values" not in batch:
            raise ViewsError(
                "The batch has no pixel_values: it did not go through GR00T's preprocessor.",
                "Call make_groot_pre_post_processors, as lerobot-train does.",
            )
        config = self.policy.get_submodule("_groot_model.backbone.model").config
        sides, ids = Patches.of(config.vision_config), batch["input_ids"]
        pictures = pictures_of(
            batch["pixel_values"], batch["image_grid_thw"], sides, self.options.pixel_mean, self.options.pixel_std
        )
        b, v = len(ids), len(self._names)
        if len(pictures) % (b * v):
            raise ViewsError(
                f"The prompts of {b} samples show {len(pictures)} images, not those of the cameras "
                f"{', '.join(self._names)}.",
                'Name the cameras in the prompt, in its order: adapter=("groot", {"views": [...]}).',
            )
        frames = pictures.reshape(b, -1, v, *pictures.shape[1:])
        view: Size = (pictures.shape[-2], pictures.shape[-1])
        features = self.policy.config.image_features
        boxes = {name: self._settings.image_geometry(tuple(features[name].shape[1:]), view) for name in self._names}
        return Prompt(
            ids=ids,
            image_token=int(config.image_token_id),
            images=frames[:, -1],
            grid=sides.grid(view),
            boxes=boxes,
            present=every(b, v, ids.device),
            earlier=(frames.shape[1] - 1) * v,
        )

    def views(self, call: ForwardCall) -> Views:
        if not self._settings.is_random:
            return super().views(call)
        if self.cameras is not None:
            raise ViewsError(
                "GR00T's preprocessor crops at random for this checkpoint (use_albumentations), and does not say "
                "where: depth and intrinsics cannot follow.",
                "Leave cameras= out and take a teacher that needs images only.",
            )
        return replace(super().views(call), source_to_view=None)


class _PictureSettings:
    """How LeRobot's preprocessor makes views, and in which order."""

    def __init__(self, config: PreTrainedConfig) -> None:
        from lerobot.policies.groot import configuration_groot, processor_groot

        assets = processor_groot._load_n1_7_checkpoint_processor_assets(config)
        self._order = processor_groot.GrootN17PackInputsStep(
            video_modality_keys=None if assets is None else assets.video_modality_keys
        )
        self._letterbox = assets is not None and assets.letter_box_transform
        self.is_random = assets is not None and assets.use_albumentations
        if assets is not None and assets.image_target_size is not None:
            self._target: Size = tuple(assets.image_target_size)
            self._edge = assets.shortest_image_edge or self._target[0]
            crop, fraction = assets.image_crop_size, assets.crop_fraction
        else:
            self._target = tuple(configuration_groot.N1_7_DEFAULT_IMAGE_TARGET_SIZE)
            self._edge, fraction = self._target[0], None
            crop = configuration_groot.N1_7_DEFAULT_IMAGE_CROP_SIZE
        if fraction is None and crop is not None:
            fraction = crop[0] / float(self._target[0])
        self._fraction = fraction if fraction is not None and 0 < fraction < 1 else None

    def order(self, cameras: Mapping[str, object]) -> tuple[str, ...]:
        """Cameras in the order of the prompt: those that the checkpoint names, else all by the alphabet."""
        return tuple(self._order._ordered_image_keys(dict.fromkeys(cameras)))

    def image_geometry(self, source: Size, view: Size) -> ImageGeometry:
        """How an image of this size became the view."""
        geometry = ImageGeometry.of(source)
        if self._letterbox:
            side = max(source)
            geometry = geometry.placed((side, side), (side - source[0]) // 2, (side - source[1]) // 2)
        geometry = geometry.resized((self._edge, self._edge))
        if self._fraction is not None:
            side = max(1, round(self._edge * self._fraction))
            corner = (self._edge - side) // 2
            geometry = geometry.placed((side, side), -corner, -corner)
        return geometry.resized(self._target).resized(view)
