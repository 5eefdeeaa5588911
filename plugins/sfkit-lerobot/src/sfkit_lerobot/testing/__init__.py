"""Tiny real policies, built offline: LeRobot's own classes with random weights and a few hundred thousand parameters.

For tests, benchmarks and demonstrations. Nothing is downloaded. The vision-language model that SmolVLA is built around
is written to a local folder first (:func:`tiny_smolvlm`); the sizes of pi0's family are hard-coded in LeRobot, so some
names of its modules are replaced while one is built (:func:`tiny_pi0_sizes`).
"""

from __future__ import annotations

from sfkit_lerobot.testing.data import tiny_image_stats, tiny_lerobot_batch, tiny_rig
from sfkit_lerobot.testing.evo1 import tiny_evo1, tiny_internvl
from sfkit_lerobot.testing.groot import tiny_groot, tiny_groot_base, tiny_groot_processors
from sfkit_lerobot.testing.molmoact2 import tiny_molmoact2, tiny_molmoact2_base
from sfkit_lerobot.testing.pi0 import tiny_pi0, tiny_pi0_fast, tiny_pi0_processors, tiny_pi0_sizes, tiny_pi05
from sfkit_lerobot.testing.qwen3vl import tiny_qwen3vl
from sfkit_lerobot.testing.resnets import tiny_act, tiny_diffusion
from sfkit_lerobot.testing.settings import CAMERAS
from sfkit_lerobot.testing.smolvla import tiny_smolvla
from sfkit_lerobot.testing.smolvlm import tiny_smolvlm
from sfkit_lerobot.testing.vla_jepa import tiny_vla_jepa
from sfkit_lerobot.testing.wall_x import tiny_wall_x, tiny_wall_x_base
from sfkit_lerobot.testing.xvla import tiny_xvla, tiny_xvla_processors

__all__ = [
    "CAMERAS",
    "tiny_act",
    "tiny_diffusion",
    "tiny_evo1",
    "tiny_groot",
    "tiny_groot_base",
    "tiny_groot_processors",
    "tiny_image_stats",
    "tiny_internvl",
    "tiny_lerobot_batch",
    "tiny_molmoact2",
    "tiny_molmoact2_base",
    "tiny_pi0",
    "tiny_pi0_fast",
    "tiny_pi0_processors",
    "tiny_pi0_sizes",
    "tiny_pi05",
    "tiny_qwen3vl",
    "tiny_rig",
    "tiny_smolvla",
    "tiny_smolvlm",
    "tiny_vla_jepa",
    "tiny_wall_x",
    "tiny_wall_x_base",
    "tiny_xvla",
    "tiny_xvla_processors",
]
