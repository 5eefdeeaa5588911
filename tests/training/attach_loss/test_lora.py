"""LoRA before the wrap, and merged after it, with the real peft; gradients against the explicit sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from sfkit import SpatialForcing
from sfkit.policies.base import ForwardCall
from sfkit.testing.tiny import OutsideAdapter, OutsidePolicy, PatchTeacher, TinyAdapter, TinyPolicy, loop_loss

peft = pytest.importorskip("peft")

KINDS: dict[str, Any] = {
    "return": (TinyPolicy, TinyAdapter, lambda output, batch: output[0]),
    "backward": (OutsidePolicy, OutsideAdapter, loop_loss),
    "manual": (OutsidePolicy, OutsideAdapter, loop_loss),
}


@pytest.mark.parametrize("attach_loss", KINDS)
def test_lora_trains_by_the_explicit_sum_and_merges(
    attach_loss: str, batch: Callable[..., Any], gradients: Callable[..., Any], same: Callable[..., None]
) -> None:
    of, adapter, loss_of = KINDS[attach_loss]

    def build() -> Any:
        torch.manual_seed(0)
        base = of().double()
        config = peft.LoraConfig(r=2, target_modules=r"blocks\.\d+\.(qkv|out)", init_lora_weights=False)
        return SpatialForcing.wrap(
            peft.get_peft_model(base, config).double(),
            PatchTeacher(),
            student_layer=2,
            attach_loss=attach_loss,
            adapter=adapter(base),
        )

    policy, other = build(), build()
    loss = loss_of(policy(batch()), batch())
    (policy.spatial_forcing.add(loss) if attach_loss == "manual" else loss).backward()

    seen: list[torch.Tensor] = []
    handle = other.spatial_forcing
    norm = other.get_base_model().blocks[2].input_layernorm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with SpatialForcing.disabled(other):
        output = other(batch())
    hook.remove()
    views = handle.adapter.views(ForwardCall({"batch": batch()}, output))
    tokens = handle.adapter.visual_tokens(seen[0], views)
    (target,) = handle.runners[0].features(views, [1], tokens.grid)
    projected = handle.pairs[0].projector(tokens.values.float(), tokens.mask)
    alignment = 0.5 * (1 - F.cosine_similarity(projected, target.values, dim=-1)).mean()
    (loss_of(output, batch()) + alignment).backward()
    same(gradients(policy), gradients(other))
    assert any("lora_A" in name for name in gradients(policy))

    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], 0.1).step()
    with torch.no_grad():
        wanted = policy.eval()(batch())
        merged = policy.merge_and_unload()
        assert type(merged) is of
        torch.testing.assert_close(loss_of(merged.eval()(batch()), batch()), loss_of(wanted, batch()))
