"""One Meta-World task with its scripted expert, played into arrays."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recorder.cameras import CameraRig, cameras_for
from recorder.geometry import Agreement, cast_rays, pick_pixels, unproject
from recorder.options import Options, RecordingError

Episode = dict[str, NDArray[Any]]
"""Feature key -> array with a leading time axis, plus the `probe.*` arrays of the geometry check."""

SENTENCES = {
    "reach-v3": "Reach the red goal marker with the gripper",
    "push-v3": "Push the puck to the green goal marker",
    "pick-place-v3": "Pick up the puck and carry it to the blue goal marker",
}
ACTION_SIZE = 4
PROBED_FRAMES = 2
PROBED_PIXELS = 12


class Scene:
    """A task's simulator, expert and cameras; plays one episode per seed, whatever came before."""

    def __init__(self, task: str, options: Options) -> None:
        self._task, self._options = task, options
        self._env, self._expert_class = _make_env(task)
        self.cameras = cameras_for(options)
        self.rig = CameraRig(self._env.model, self._env.data, self.cameras, options)

    @property
    def sentence(self) -> str:
        return sentence_for(self._task)

    @property
    def fps(self) -> int:
        """Decisions per simulated second."""
        return round(1 / (float(self._env.dt) * self._options.action_repeat))

    def seed_for(self, episode: int, attempt: int) -> int:
        """A seed that depends on the options, the task, the episode and the attempt, and nothing else."""
        name = zlib.crc32(self._task.encode())
        sequence = np.random.SeedSequence([self._options.seed, name, episode, attempt])
        return int(sequence.generate_state(1)[0] >> 1)

    def play(self, seed: int) -> tuple[Episode, bool]:
        """Roll the expert out once.

        Returns:
            The episode and whether the task succeeded within `max_steps` decisions.

        Raises:
            GeometryError: The cameras' geometry disagrees with the simulator's.
        """
        rng = np.random.default_rng(seed)
        observation, expert = self._reset(seed), self._expert_class()
        frames: list[dict[str, NDArray[Any]]] = []
        probes: list[dict[str, NDArray[Any]]] = []
        probed = {0, int(rng.integers(1, 20))}
        succeeded = False
        while not succeeded and len(frames) < self._options.max_steps:
            action = _label(expert, observation)
            frames.append(self._observe(observation, action))
            if len(frames) - 1 in probed:
                probes += self._probe(frames[-1], len(frames) - 1, rng)
            noise = rng.normal(0, self._options.action_noise, ACTION_SIZE)
            observation, succeeded = self._act(np.clip(action + noise, -1, 1))
        episode = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        rays = {key: np.concatenate([probe[key] for probe in probes]) for key in probes[0]}
        return episode | rays, succeeded

    def close(self) -> None:
        self.rig.close()
        self._env.close()

    def _reset(self, seed: int) -> NDArray[np.float64]:
        import mujoco

        self._env.seed(seed)
        observation, _ = self._env.reset()
        # Meta-World moves the goal marker in the model only after its last forward pass.
        mujoco.mj_forward(self._env.model, self._env.data)
        return np.asarray(observation)

    def _act(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
        for _ in range(self._options.action_repeat):
            observation, _, _, _, info = self._env.step(action)
            if info["success"]:
                return observation, True
        return observation, False

    def _observe(self, observation: NDArray[np.float64], action: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        frame: dict[str, NDArray[Any]] = {
            "observation.state": observation[:4].astype(np.float32),
            "action": action,
            "label.object_position": np.asarray(self._env._get_pos_objects()[:3], dtype=np.float32),
            "label.goal_position": np.asarray(self._env._target_pos, dtype=np.float32),
        }
        for camera in self.cameras:
            frame[camera.image_key] = self.rig.rgb(camera)
            frame[camera.depth_key] = self.rig.depth_mm(camera)
            if camera.moving:
                frame[camera.pose_key] = self.rig.world_from_camera(camera).astype(np.float32).reshape(16)
        return frame

    def _probe(
        self, frame: dict[str, NDArray[Any]], frame_index: int, rng: np.random.Generator
    ) -> list[dict[str, NDArray[Any]]]:
        """Ray hits behind a few pixels of each camera, after checking the frame's values against them."""
        probes = []
        for number, camera in enumerate(self.cameras):
            depth = frame[camera.depth_key]
            pixels = pick_pixels(depth, PROBED_PIXELS, rng)
            matrix = self.rig.intrinsics(camera, self._options.depth_size)
            pose = self.rig.world_from_camera(camera)
            hits = cast_rays(self._env.model, self._env.data, pixels, matrix, pose)
            stored = frame[camera.pose_key].reshape(4, 4) if camera.moving else pose
            points = unproject(pixels, depth[pixels[:, 1], pixels[:, 0], 0] / 1000, matrix, stored)
            Agreement.of(np.linalg.norm(points - hits, axis=1)).require(f"{self._task}, camera {camera.name}")
            probes.append(
                {
                    "probe.frame_index": np.full(len(pixels), frame_index, dtype=np.int32),
                    "probe.camera": np.full(len(pixels), number, dtype=np.int32),
                    "probe.pixel": pixels.astype(np.int32),
                    "probe.hit": hits.astype(np.float32),
                }
            )
        return probes


def sentence_for(task: str) -> str:
    """The instruction stored with a task's episodes; Meta-World's own task names are the fallback."""
    return SENTENCES.get(task, task.rsplit("-", 1)[0].replace("-", " ").capitalize())


def _label(expert: Any, observation: NDArray[np.float64]) -> NDArray[np.float32]:
    """The expert's clean action, shape (4,), in [-1, 1]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # clipped right here
        action: NDArray[np.float32] = np.clip(expert.get_action(observation), -1, 1).astype(np.float32)
    return action


def _make_env(task: str) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium and Meta-World warn about their own internals
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        if task not in ENV_POLICY_MAP:
            raise RecordingError(f"{task!r} is not a Meta-World task; there are: {', '.join(sorted(ENV_POLICY_MAP))}")
        benchmark = metaworld.MT1(task, seed=0)
        env = benchmark.train_classes[task]()
        env.set_task(benchmark.train_tasks[0])
    # As LeRobot does: object and goal come from the seed given to each episode, not from a fixed list.
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    return env, ENV_POLICY_MAP[task]
