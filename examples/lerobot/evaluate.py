"""Load a checkpoint as plain LeRobot does, strictly, and say how well it predicts the actions of some frames.

Nothing here needs sfkit, whatever the checkpoint was trained with.

python examples/lerobot/evaluate.py outputs/aligned --data plugins/sfkit-demo/src/sfkit_demo/recording
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the folder with config.json and model.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="a LeRobot dataset")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    config = PreTrainedConfig.from_pretrained(options.checkpoint)
    config.device = options.device
    policy = get_policy_class(config.type).from_pretrained(options.checkpoint, config=config, strict=True)
    overrides = {"device_processor": {"device": options.device}}
    preprocess, postprocess = make_pre_post_processors(config, options.checkpoint, preprocessor_overrides=overrides)

    torch.manual_seed(0)
    dataset = LeRobotDataset("local/data", root=options.data, video_backend="pyav")
    errors = []
    for index in torch.linspace(0, len(dataset) - 1, options.frames).long().tolist():
        frame = dataset[index]
        policy.reset()
        with torch.no_grad():
            action = postprocess(policy.select_action(preprocess(dict(frame))))
        errors.append((action.squeeze(0).cpu() - frame["action"]).abs().mean())
    print(f"{config.type}, {options.frames} frames: mean error of the next action {torch.stack(errors).mean():.4f}")


if __name__ == "__main__":
    main()
