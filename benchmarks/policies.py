"""The policies that are measured, built offline, each with a batch."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sfkit_demo import RECORDING

from sfkit.views.cameras import Camera, CameraRig, PoseTable

_CAMERAS = RECORDING / "meta" / "cameras.json"


@dataclass(frozen=True)
class Subject:
    """A policy, unwrapped, with a batch to train on and the cameras behind that batch."""

    policy: Any
    batch: dict[str, Any]
    cameras: CameraRig

    def copy(self) -> Any:
        """The same policy as another object."""
        return deepcopy(self.policy)

    def about(self) -> dict[str, Any]:
        """Sizes, for the record."""
        model = self.policy.model.vlm_with_expert.vlm.model
        vision, text = model.vision_model.config, model.text_model.config
        return {
            "parameters": sum(parameter.numel() for parameter in self.policy.parameters()),
            "batch size": len(self.batch["action"]),
            "cameras": len(self.policy.config.image_features),
            "view": f"{vision.image_size} px",
            "vision": f"{vision.num_hidden_layers} blocks of {vision.hidden_size}",
            "text": f"{text.num_hidden_layers} blocks of {text.hidden_size}",
        }


@cache
def demo_smolvla(batch_size: int) -> Subject:
    """The demonstration's own policy, cameras and preprocessing, with images of noise."""
    from sfkit_demo.model import build_policy
    from sfkit_demo.settings import Settings

    settings = Settings(data=_CAMERAS.parents[1])
    rows = torch.arange(batch_size)
    frames = _noise_frames(batch_size)
    with TemporaryDirectory() as folder:
        policy, preprocess = build_policy(frames, rows, settings, Path(folder))
    return Subject(policy.train(), preprocess(frames.batch(rows, settings.chunk)), frames.cameras)


def _noise_frames(count: int) -> Any:
    """Frames of the sizes of the demonstration's data. To decode the real ones takes longer than to measure."""
    from sfkit_demo.data import Frames

    rig = CameraRig.load(_CAMERAS)
    keys = {key: f"{key}_depth" for key in rig.cameras}
    generator = torch.Generator().manual_seed(0)
    return Frames(
        images={key: torch.randint(256, (count, 3, 96, 96), generator=generator).byte() for key in keys},
        depth={key: 400 + 1000 * torch.rand(count, 1, 48, 48, generator=generator) for key in keys.values()},
        state=torch.randn(count, 4, generator=generator),
        action=torch.randn(count, 4, generator=generator),
        labels={},
        index=torch.arange(count),
        episode=torch.zeros(count, dtype=torch.long),
        tasks=("push the puck to the goal",) * count,
        cameras=CameraRig(
            {key: camera.model_copy(update={"depth_unit": "mm"}) for key, camera in rig.cameras.items()},
            {
                camera.pose_key: PoseTable(torch.arange(count), torch.eye(4).repeat(count, 1, 1))
                for camera in rig.cameras.values()
                if camera.pose_key is not None
            },
        ),
    )


@cache
def wide_smolvla(*, quick: bool) -> Subject:
    """SmolVLA-450M's widths, images and tokens with fewer blocks and random weights; all that may be is trained.

    Fewer blocks make the plain step shorter, and so alignment's share larger, than in the whole model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeRobot's imports warn about optional packages
        from sfkit_lerobot.testing import tiny_smolvla

    batch_size, side, vision_blocks, text_blocks = (1, 128, 1, 2) if quick else (4, 512, 2, 4)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        policy = tiny_smolvla(
            wide_smolvlm(Path(folder), side, vision_blocks, text_blocks),
            image_shape=(3, 256, 256),
            expert_width_multiplier=0.75,
            chunk_size=50,
            max_state_dim=32,
            max_action_dim=32,
        )
    return Subject(policy, _wide_batch(policy, batch_size), _wide_cameras(policy))


def tiny_smolvlm_at_128(folder: Path) -> Path:
    """A tiny backbone with 8 x 8 tokens for each camera of 128 pixels."""
    from sfkit_lerobot.testing import tiny_smolvlm

    return tiny_smolvlm(folder, image_size=128)


def wide_smolvlm(folder: Path, side: int, vision_blocks: int, text_blocks: int) -> Path:
    """A backbone of SmolVLA-450M's widths, with so many blocks."""
    from sfkit_lerobot.testing import tiny_smolvlm

    folder = tiny_smolvlm(
        folder,
        vision_hidden=768, vision_layers=vision_blocks, vision_heads=12, image_size=side, patch_size=16,
        scale_factor=4, hidden=960, layers=text_blocks, heads=15, kv_heads=5,
    )  # fmt: skip
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["intermediate_size"] = 3072
    config["text_config"]["intermediate_size"] = 2560
    path.write_text(json.dumps(config))
    return folder


def _wide_batch(policy: Any, batch_size: int) -> dict[str, Any]:
    """Images of 256 pixels with depth maps of 128, and a text padded to LeRobot's 48 tokens."""
    from sfkit_lerobot.testing import tiny_lerobot_batch

    batch: dict[str, Any] = tiny_lerobot_batch(policy, batch_size=batch_size, geometry=True)
    halved = {key: value[..., ::2, ::2].contiguous() for key, value in batch.items() if key.endswith("_depth")}
    tokens = torch.randint(20, 200, (batch_size, 48), generator=torch.Generator().manual_seed(0))
    text = {
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": torch.ones_like(tokens, dtype=torch.bool),
    }
    return {**batch, **halved, **text}


def _wide_cameras(policy: Any) -> CameraRig:
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    intrinsics = ((256.0, 0.0, 127.5), (0.0, 256.0, 127.5), (0.0, 0.0, 1.0))
    return CameraRig(
        {
            key: Camera(
                width=256, height=256, intrinsics=intrinsics,
                depth_key=f"{key}_depth", depth_unit="m", world_from_camera=eye,
            )
            for key in policy.config.image_features
        }
    )  # fmt: skip
