"""What pi0.5 has and pi0 has not: the state in the prompt, and a memory of some frames in later releases of LeRobot."""

from __future__ import annotations

import pytest
import torch
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from sfkit_lerobot.testing import CAMERAS, tiny_lerobot_batch, tiny_pi0_processors

from sfkit.errors import ShapeError

FRONT, WRIST = CAMERAS
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
STATS = {
    key: {"mean": torch.zeros(4), "std": torch.ones(4), "q01": -torch.ones(4), "q99": torch.ones(4)}
    for key in ("observation.state", "action")
}
with_memory = pytest.mark.skipif(
    not hasattr(PI05Config, "use_visual_memory"), reason="this release of LeRobot has no memory for pi0.5"
)


def raw_batch(policy, state: float = 0.0):
    batch = tiny_lerobot_batch(policy, geometry=True)
    kept = {key: value for key, value in batch.items() if key not in (TOKENS, MASK)}
    return {**kept, "observation.state": torch.full((2, 4), state), "task": ["push the block", "reach the goal"]}


@pytest.mark.parametrize(("pi", "text", "changes"), [("pi0", 48, False), ("pi05", 200, True)])
def test_the_sequence_of_pi05_has_no_state_token(pi, text, changes, build, adapter_of, tapped) -> None:
    policy = build(pi)
    preprocess, _ = tiny_pi0_processors(policy, STATS, ["push the block", "reach the goal"])
    low, high = (preprocess(raw_batch(policy, state)) for state in (-0.5, 0.5))
    assert torch.equal(low[TOKENS], high[TOKENS]) is not changes
    assert low[TOKENS].shape == (2, text)
    assert int(low[TOKENS].max()) < 511, "the last token is the image's"
    assert not bool(low[MASK][:, -1].any()), "the prompt was cut off"
    hidden, _, student = tapped(adapter_of(policy), low, 0)
    assert hidden.shape[1] == 2 * 16 + text
    assert bool(student.mask.all())


def clips(batch, frames: int = 3):
    """Each camera with some frames, of which the last is the batch's own."""
    cameras = {key: torch.stack([batch[key].flip(0) * 0.5] * (frames - 1) + [batch[key]], 1) for key in CAMERAS}
    depth = {f"{key}_depth": torch.stack([batch[f"{key}_depth"]] * frames, 1) for key in CAMERAS}
    return {**batch, **cameras, **depth}


def test_the_last_frame_of_a_clip_is_the_view(build, adapter_of, views_of, monkeypatch) -> None:
    policy = build("pi05", cameras=(*CAMERAS, "observation.images.side"))
    batch = tiny_lerobot_batch(policy, missing=["observation.images.side"], geometry=True)
    original = policy._preprocess_images

    def with_clips(batch):
        """As later releases do it, in this one too: ``(b, t, 3, h, w)`` images and ``(b, t)`` masks."""
        frames = [original({key: value[:, t] for key, value in batch.items() if value.ndim == 5}) for t in range(3)]
        pictures, masks = zip(*frames, strict=True)
        return [torch.stack(p, 1) for p in zip(*pictures, strict=True)], [
            torch.stack(m, 1) for m in zip(*masks, strict=True)
        ]

    adapter = adapter_of(policy)
    single = views_of(adapter, batch)
    monkeypatch.setattr(policy, "_preprocess_images", with_clips)
    several = views_of(adapter, clips(batch))
    assert several.names == single.names
    for field in ("images", "valid", "depth", "intrinsics", "source_to_view"):
        assert torch.equal(getattr(several, field), getattr(single, field)), field
    assert several.present.tolist() == [[True, True, False]] * 2


def test_fault_16_past_states_have_tokens_of_their_own(build, adapter_of, views_of) -> None:
    policy = build("pi05")
    policy.config.use_proprioceptive_memory = True
    adapter, batch = adapter_of(policy), tiny_lerobot_batch(policy)
    for state, tokens in ((torch.zeros(2, 3, 4), 3), (torch.zeros(2, 4), 1)):
        views = views_of(adapter, {**batch, "observation.state": state})
        hidden = torch.zeros(2, 2 * 16 + tokens + 6, 64)
        assert adapter.visual_tokens(hidden, views).values.shape == (2, 2, 4, 4, 64)
        with pytest.raises(ShapeError, match=f"expected {hidden.shape[1]} "):
            adapter.visual_tokens(hidden[:, 1:], views)


@with_memory
@pytest.mark.parametrize("states", [False, True])
def test_a_policy_with_memory_is_aligned_on_its_last_frame(states, build, wrap, adapter_of, tapped) -> None:
    options = {"use_visual_memory": True, "use_proprioceptive_memory": states, "memory_temporal_attention_every": 2}
    policy = build("pi05", memory_frames=3, **options)
    batch = clips(tiny_lerobot_batch(policy, geometry=True))
    if states:
        batch["observation.state"] = torch.stack([batch["observation.state"]] * 3, 1)
    hidden, views, before = tapped(adapter_of(policy), batch, 0)
    assert hidden.shape[1] == 2 * 16 + 3 * states + 6
    assert torch.equal(views.images[:, 0], batch[FRONT][:, -1])
    for frame, own_place in ((0, False), (-1, True)):
        changed = {**batch, FRONT: batch[FRONT].clone()}
        changed[FRONT][:, frame, :, :14, 42:] = 1 - changed[FRONT][:, frame, :, :14, 42:].round()
        moved = (tapped(adapter_of(policy), changed, 0)[2].values - before.values).norm(dim=-1)
        assert bool(moved[:, 0].gt(0).any()), "a past frame is mixed into the tokens of the last"
        assert not bool(moved[:, 1].any())
        assert not own_place or int(moved[0].argmax()) == 3
    policy = wrap(policy)
    loss, info = policy(batch)
    loss.backward()
    assert info["sf_loss"] > 0
