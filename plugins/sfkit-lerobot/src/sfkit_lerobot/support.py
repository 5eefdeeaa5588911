"""LeRobot's policies, as sfkit's registry lists them: those with an adapter, and why the others have none.

Plain data: the registry reads it without importing torch or lerobot.
"""

from __future__ import annotations

from typing import Any

_TINY = "a tiny instance of LeRobot's class: spatial correspondence, gradients, training, saving"
#: Said of each type ``sf_*`` that a test has trained with the command, resumed, and loaded by plain LeRobot.
_COMMAND = "`lerobot-train` as `{}`: trained, resumed, loaded by plain LeRobot"

#: Adapter, and what it is registered with.
POLICIES: dict[str, dict[str, Any]] = {
    "sfkit_lerobot.smolvla:SmolVLAAdapter": {
        "name": "smolvla",
        "summary": "SmolVLA of LeRobot",
        "handles": ("lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy",),
        "aligned": "pictures' tokens in the language model, after pixel shuffle, or the vision tower's output",
        "trains": "the action expert alone: set `train_expert_only=False`, or use LoRA",
        "verified": f"{_TINY}; {_COMMAND.format('sf_smolvla')}",
    },
    "sfkit_lerobot.pi0:PI0Adapter": {
        "name": "pi0",
        "summary": "pi0 of LeRobot",
        "handles": ("lerobot.policies.pi0.modeling_pi0.PI0Policy",),
        "aligned": "pictures' tokens in PaliGemma's language model, or its vision tower's output",
        "trains": "everything",
        "verified": f"{_TINY}; {_COMMAND.format('sf_pi0')}",
    },
    "sfkit_lerobot.pi05:PI05Adapter": {
        "name": "pi05",
        "summary": "pi0.5 of LeRobot",
        "handles": ("lerobot.policies.pi05.modeling_pi05.PI05Policy",),
        "aligned": "pictures' tokens in PaliGemma's language model, or its vision tower's output",
        "trains": "everything",
        "verified": f"{_TINY}; {_COMMAND.format('sf_pi05')}",
    },
    "sfkit_lerobot.pi0_fast:PI0FastAdapter": {
        "name": "pi0_fast",
        "summary": "pi0-FAST of LeRobot",
        "handles": ("lerobot.policies.pi0_fast.modeling_pi0_fast.PI0FastPolicy",),
        "aligned": "pictures' tokens in PaliGemma's language model, or its vision tower's output",
        "trains": "everything",
        "verified": f"{_TINY}; {_COMMAND.format('sf_pi0_fast')}",
    },
    "sfkit_lerobot.groot:GrootAdapter": {
        "name": "groot",
        "summary": "GR00T N1.7 of LeRobot",
        "handles": ("lerobot.policies.groot.modeling_groot.GrootPolicy",),
        "aligned": "pictures' tokens in Qwen3-VL's language model",
        "trains": "the action head alone: set `tune_llm=True` or `tune_visual=True`",
        "verified": f"{_TINY}; {_COMMAND.format('sf_groot')}",
    },
    "sfkit_lerobot.xvla:XVLAAdapter": {
        "name": "xvla",
        "summary": "X-VLA of LeRobot",
        "handles": ("lerobot.policies.xvla.modeling_xvla.XVLAPolicy",),
        "aligned": "the first view's tokens in Florence-2's encoder; other views go around it",
        "trains": "everything",
        "verified": f"{_TINY}; {_COMMAND.format('sf_xvla')}",
    },
    "sfkit_lerobot.evo1:Evo1Adapter": {
        "name": "evo1",
        "summary": "EVO1 of LeRobot",
        "handles": ("lerobot.policies.evo1.modeling_evo1.Evo1Policy",),
        "aligned": "pictures' tokens in InternVL3's language model",
        "trains": 'the action head alone: set `training_stage="stage2"`',
        "verified": f"{_TINY}; {_COMMAND.format('sf_evo1')}",
    },
    "sfkit_lerobot.vla_jepa:VLAJEPAAdapter": {
        "name": "vla_jepa",
        "summary": "VLA-JEPA of LeRobot",
        "handles": ("lerobot.policies.vla_jepa.modeling_vla_jepa.VLAJEPAPolicy",),
        "aligned": "pictures' tokens in Qwen3-VL's language model",
        "trains": "everything; the optimizer needs `policy.spatial_forcing.parameters()` beside `get_optim_params()`",
        "verified": f"{_TINY}; without its world model; {_COMMAND.format('sf_vla_jepa')}",
    },
    "sfkit_lerobot.wall_x:WallXAdapter": {
        "name": "wall_x",
        "summary": "Wall-X of LeRobot",
        "handles": ("lerobot.policies.wall_x.modeling_wall_x.WallXPolicy",),
        "aligned": "pictures' tokens in Qwen2.5-VL's language model",
        "trains": "everything",
        "verified": f"{_TINY}; without FAST actions; {_COMMAND.format('sf_wall_x')}",
    },
    "sfkit_lerobot.molmoact2:MolmoAct2Adapter": {
        "name": "molmoact2",
        "summary": "MolmoAct2 of LeRobot",
        "handles": ("lerobot.policies.molmoact2.modeling_molmoact2.MolmoAct2Policy",),
        "aligned": "pictures' tokens in Molmo's language model; of a picture shown in crops too, those of the whole",
        "trains": "everything but the embeddings of words",
        "verified": f"{_TINY}; `lerobot-train` as `sf_molmoact2`: trained (LeRobot 0.6.1 itself cannot resume it)",
    },
    "sfkit_lerobot.act:ACTAdapter": {
        "name": "act",
        "summary": "ACT of LeRobot",
        "handles": ("lerobot.policies.act.modeling_act.ACTPolicy",),
        "aligned": "cells of the ResNet's map, as tokens of the transformer encoder (layer 0: before its first block)",
        "trains": "everything",
        "verified": f"{_TINY} (a real ResNet-18); {_COMMAND.format('sf_act')}",
    },
    "sfkit_lerobot.diffusion:DiffusionAdapter": {
        "name": "diffusion",
        "summary": "Diffusion Policy of LeRobot",
        "handles": ("lerobot.policies.diffusion.modeling_diffusion.DiffusionPolicy",),
        "aligned": "cells of the ResNet's map after stage 0 to 4, of the last observation, as it was cropped",
        "trains": "everything; the optimizer needs `policy.spatial_forcing.parameters()` beside `get_optim_params()`",
        "verified": f"{_TINY} (a real ResNet-18); {_COMMAND.format('sf_diffusion')}",
    },
}

_NOT_YET = "nobody has written one yet"

#: LeRobot's type, its class, and why it has no adapter.
WITHOUT: tuple[tuple[str, str, str], ...] = (
    ("eo1", "EO1Policy", f"{_NOT_YET}; its Qwen2.5-VL has visual tokens"),
    (
        "multi_task_dit",
        "MultiTaskDiTPolicy",
        f"{_NOT_YET}; of each picture only CLIP's class token reaches the actions, so only its trunk could be aligned",
    ),
    ("vqbet", "VQBeTPolicy", f"{_NOT_YET}; its picture encoder is built like Diffusion's"),
    ("tdmpc", "TDMPCPolicy", "reinforcement learning on one vector for each picture"),
    (
        "gaussian_actor",
        "GaussianActorPolicy",
        "an actor of reinforcement learning: its forward returns actions, and no loss that alignment could join",
    ),
    ("fastwam", "FastWAMPolicy", "a world model: its tokens are noisy latents of video, made by a frozen encoder"),
    ("lingbot_va", "LingBotVAPolicy", "a world model: its tokens are noisy latents of video, made by a frozen encoder"),
)


def class_pattern(kind: str, name: str) -> str:
    """Qualified name of a policy's class."""
    return f"lerobot.policies.{kind}.modeling_{kind}.{name}"
