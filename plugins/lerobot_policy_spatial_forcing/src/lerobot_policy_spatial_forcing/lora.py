"""PEFT: adapters where alignment can train something, and the PeftModel that LeRobot builds by itself on resuming."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from sfkit import SpatialForcing
from sfkit.errors import GradientError

#: The PeftModel around a policy. Beside the policy and not in it: neither copies nor pickles of it should follow.
_OUTER: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()


def outer_of(policy: nn.Module) -> nn.Module | None:
    """The PeftModel around a policy, once it is known."""
    reference = _OUTER.get(policy)
    return None if reference is None else reference()


def note_outer(policy: nn.Module, outer: nn.Module) -> None:
    """Remember it."""
    _OUTER[policy] = weakref.ref(outer)


def expect_outer(policy: nn.Module) -> None:
    """Note the PeftModel that is about to be built around ``policy`` without notice.

    LeRobot loads an adapter with ``PeftModel.from_pretrained(policy, ...)`` and hands the result to its trainer. torch
    calls the hook for every module that becomes a part of another; it is removed after that one.
    """
    expected = weakref.ref(policy)

    def look(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        inner = expected()
        if inner is None:
            registration.remove()
        elif name == "base_model" and child is not None and (child is inner or inner in child.children()):
            note_outer(inner, parent)
            registration.remove()

    registration = register_module_module_registration_hook(look)


@dataclass(frozen=True)
class Reach:
    """What lies before the tap, and is therefore trained by the alignment.

    Attributes:
        decoder: Path of the decoder within the policy.
        blocks: Name of its blocks: ``layers``, or ``blocks``.
        student_layer: Blocks before the tap; of several taps, before the last.
    """

    decoder: str
    blocks: str
    student_layer: int

    @classmethod
    def of(cls, handle: SpatialForcing) -> Reach | None:
        """For a policy with a decoder; None for others, of which the check of the first batch says what is reached."""
        adapter: Any = handle.adapter
        path = getattr(adapter, "decoder_path", None)
        if path is None:
            return None
        blocks = "layers" if hasattr(adapter.decoder, "layers") else "blocks"
        # A tap on the vision tower's output lies before all blocks.
        layers = [pair.student_layer for pair in handle.config.pairs if isinstance(pair.student_layer, int)]
        return cls(path, blocks, max(layers, default=0))

    @property
    def targets(self) -> str:
        """A regular expression for the attention projections of those blocks."""
        numbers = "|".join(str(block) for block in range(self.student_layer))
        return rf".*{re.escape(self.decoder)}\.{self.blocks}\.({numbers})\.self_attn\.(q_proj|v_proj|att_proj)"

    def added_to(self, defaults: dict[str, object] | None) -> dict[str, object] | None:
        """LeRobot's default targets, which are the action expert alone, and these blocks.

        Defaults in another form than one regular expression are left to :meth:`require`.
        """
        targets = (defaults or {}).get("target_modules")
        if not isinstance(targets, str) or not self.student_layer:
            return defaults
        return {**(defaults or {}), "target_modules": f"({targets}|{self.targets})"}

    def require(self, policy: nn.Module) -> None:
        """Check that an adapter lies before the tap.

        Raises:
            GradientError: All of them lie elsewhere, as LeRobot's defaults do.
        """
        if any(True for _ in self._trainable(policy)):
            return
        names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
        raise GradientError(
            f"The PEFT adapters lie nowhere before student layer {self.student_layer} of the backbone: alignment would "
            f"train nothing of the policy. Trainable: {', '.join(names[:3])}, and {max(0, len(names) - 3)} more.",
            self._remedy,
        )

    @property
    def _remedy(self) -> str:
        if not self.student_layer:
            return "What is tapped is the vision tower's output: include its layers in --peft.target_modules."
        return (
            "Leave --peft.target_modules out, or include the blocks before the tap: "
            f"--peft.target_modules='{self.targets}'."
        )

    def _trainable(self, policy: nn.Module) -> Iterator[str]:
        """Trainable parameters of the vision side, and of decoder blocks before the tap."""
        parent, _, decoder = self.decoder.rpartition(".")
        block = re.compile(rf"{re.escape(decoder)}\.{self.blocks}\.(\d+)\.")
        for name, parameter in policy.get_submodule(parent).named_parameters():
            found = block.match(name)
            before = int(found[1]) < self.student_layer if found else not name.startswith(f"{decoder}.")
            if parameter.requires_grad and before:
                yield name


def with_projector(parameters: Any, projector: Callable[[], Iterator[nn.Parameter]]) -> Any:
    """What an optimizer is given, with the projector's parameters if they are not among them.

    Args:
        parameters: As ``get_optim_params`` returns them: parameters or groups, listed, as pairs with names, or by name.
        projector: Gives the projector's parameters.
    """
    if isinstance(parameters, dict):
        known = {id(one) for item in parameters.values() for one in ([item] if isinstance(item, Tensor) else item)}
        missing = [one for one in projector() if id(one) not in known]
        if any(isinstance(item, Tensor) for item in parameters.values()):
            return {**parameters, **{f"spatial_forcing.{index}": one for index, one in enumerate(missing)}}
        return {**parameters, "spatial_forcing": missing} if missing else parameters
    items = list(parameters)
    known = {id(one) for item in items for one in _parameters_in(item)}
    missing = [one for one in projector() if id(one) not in known]
    if not missing:
        return items
    if items and isinstance(items[0], dict):
        return [*items, {"params": missing}]
    if items and isinstance(items[0], tuple):
        return [*items, *((f"spatial_forcing.{index}", one) for index, one in enumerate(missing))]
    return [*items, *missing]


def _parameters_in(item: Any) -> list[nn.Parameter]:
    if isinstance(item, dict):
        return [one[1] if isinstance(one, tuple) else one for one in item["params"]]
    return [item[1] if isinstance(item, tuple) else item]
