"""Train a LeRobot policy in a loop of your own, aligned with a frozen 3D teacher: two lines are sfkit's.

python examples/lerobot/train.py --data plugins/sfkit-demo/src/sfkit_demo/recording --steps 100 --output outputs/aligned
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from sfkit_lerobot import camera_rig, policy_features

from sfkit import SpatialForcing


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    dataset = open_dataset(options.data, options.chunk)
    config = make_config(dataset, options)
    policy = SmolVLAPolicy(config)
    preprocess, postprocess = make_smolvla_pre_post_processors(config, dataset.meta.stats)

    # Before the optimizer, so that it knows the projector; `policy` stays the same object.
    policy = SpatialForcing.wrap(
        policy, teacher="geometry", student_layer=options.student_layer, cameras=camera_rig(dataset)
    )

    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=config.optimizer_lr)
    loader = torch.utils.data.DataLoader(dataset, batch_size=options.batch_size, shuffle=True, drop_last=True)
    policy.train()  # LeRobot's from_pretrained returns policies in eval mode
    for step, batch in zip(range(1, options.steps + 1), endless(loader), strict=False):
        loss, logs = policy.forward(preprocess(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % options.log_every == 0:
            shown = {key: logs[key] for key in ("action_loss", "sf_loss", "sf_cosine")}
            print(f"step {step}: " + ", ".join(f"{key} {value:.3f}" for key, value in shown.items()))

    print(policy.spatial_forcing.status())
    policy.save_pretrained(options.output)  # plain SmolVLA, and spatial_forcing/ to resume from
    preprocess.save_pretrained(options.output)
    postprocess.save_pretrained(options.output)


def open_dataset(root: Path, chunk: int) -> LeRobotDataset:
    fps = LeRobotDataset("local/data", root=root, episodes=[0], video_backend="pyav").fps
    times = {"action": [step / fps for step in range(chunk)]}
    return LeRobotDataset("local/data", root=root, delta_timestamps=times, video_backend="pyav")


def make_config(dataset: LeRobotDataset, options: argparse.Namespace) -> SmolVLAConfig:
    features = policy_features(dataset.meta.features)  # depth and calibration are the teacher's alone
    changes = {} if options.vlm is None else {"vlm_model_name": str(options.vlm), "num_vlm_layers": 0}
    if options.image_side is not None:
        changes["resize_imgs_with_padding"] = (options.image_side, options.image_side)
    return SmolVLAConfig(
        input_features={key: f for key, f in features.items() if f.type is not FeatureType.ACTION},
        output_features={key: f for key, f in features.items() if f.type is FeatureType.ACTION},
        train_expert_only=False,  # SmolVLA freezes its backbone by default, and then there is nothing to align
        freeze_vision_encoder=False,
        chunk_size=options.chunk,
        n_action_steps=options.chunk,
        device=options.device,
        **changes,
    )


def endless(loader: torch.utils.data.DataLoader):
    while True:
        yield from loader


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a LeRobot dataset with meta/cameras.json")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=50, help="actions for each prediction")
    parser.add_argument("--student-layer", type=int, help="blocks before the tap; two thirds of them by default")
    parser.add_argument("--vlm", type=Path, help="another vision-language model for SmolVLA")
    parser.add_argument("--image-side", type=int, help="pixels to which SmolVLA resizes images")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
