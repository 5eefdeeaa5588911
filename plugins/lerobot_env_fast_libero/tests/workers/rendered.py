"""Prints what fast and plain environments of one process, and fast ones in other processes, rendered."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from lerobot.envs.configs import LiberoEnv
from lerobot_env_fast_libero import FastLiberoEnv


def settings(vector: Any) -> list[int]:
    import mujoco

    context = vector.envs[0]._env.sim._render_context_offscreen
    flags = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
    return [*(int(context.scn.flags[flag]) for flag in flags), int(context.con.offSamples)]


def looked(kind: type[LiberoEnv], parallel: bool = False) -> dict[str, Any]:
    config = kind(task="libero_spatial", task_ids=[0], observation_height=64, observation_width=64)
    ((vector,),) = (tasks.values() for tasks in config.create_envs(2 if parallel else 1, parallel).values())
    found: dict[str, Any] = {"settings": []}
    for index in range(1 if parallel else 2):
        seen, _ = vector.reset(seed=[0] * vector.num_envs)
        if index == 0:
            picture = np.concatenate([image[0] for image in seen["pixels"].values()])
            found["picture"] = hashlib.sha256(picture.tobytes()).hexdigest()
            found["state"] = seen["robot_state"]["eef"]["pos"][0].tolist()
        if not parallel:
            found["settings"].append(settings(vector))
    vector.close()
    return found


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "fast": looked(FastLiberoEnv),
                "plain": looked(LiberoEnv),
                "parallel": looked(FastLiberoEnv, parallel=True),
            }
        )
    )
