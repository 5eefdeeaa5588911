"""Policies ``sf_*``: LeRobot's own, which wrap themselves. ``SFSmolVLAPolicy`` and the others are made on first use.

They are thin: all that aligns is :meth:`sfkit.SpatialForcing.wrap`, as from Python.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sfkit_lerobot.base import LeRobotAdapter
from sfkit_lerobot.logs import log_every
from torch import nn

from lerobot_policy_spatial_forcing import compat, lora
from lerobot_policy_spatial_forcing.bases import adapter_named, is_generic
from lerobot_policy_spatial_forcing.card import add_to_card, add_to_readme
from lerobot_policy_spatial_forcing.configuration_sf import CONFIGS, SfConfig
from lerobot_policy_spatial_forcing.geometry import cameras_of, frames_of, picture_stats, require_cameras
from lerobot_policy_spatial_forcing.origin import check_cameras
from lerobot_policy_spatial_forcing.resuming import RandomState, restore
from lerobot_policy_spatial_forcing.sources import fetch
from lerobot_policy_spatial_forcing.trainer import hide_depth, trainer_of
from lerobot_policy_spatial_forcing.weights import FAILURES, LoadRecord, unreadable
from sfkit import SpatialForcing
from sfkit.config import ComponentSpec
from sfkit.errors import ConfigError, GradientError, WrapError
from sfkit.policies.base import PolicyAdapter

logger = logging.getLogger("sfkit")

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.pretrained import PreTrainedPolicy as _Policy
else:
    # LeRobot's class comes behind this one in each policy made here.
    _Policy = object


class SfPolicy(_Policy):  # type: ignore[misc]
    """What the policies share; comes before LeRobot's class in the order of methods.

    Args:
        config: One of the configurations ``sf_*``.
        dataset_meta: Metadata of the dataset: where cameras and statistics are found.
        deferred: Do not wrap yet: weights, or adapters, are still to be loaded.
    """

    config: SfConfig
    _record: LoadRecord | None = None
    _reach: lora.Reach | None = None
    _random: RandomState | None = None
    _pending = False  # while LeRobot's constructor runs, which may ask for training mode

    def __init__(
        self,
        config: SfConfig,
        *inputs: object,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        deferred: bool = False,
        **kwargs: object,
    ) -> None:
        compat.warn_of_unknown_version()
        compat.warn_of_single_process()
        compat.refuse_fsdp()
        super().__init__(config, *inputs, **kwargs)
        self._meta = dataset_meta
        trainer_of(self, config, dataset_meta)
        self._pending = deferred
        if not deferred:
            self._wrap(self)

    # ------------------------------------------------------------------------------------------------- loading

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: SfConfig | None = None, **kwargs: Any
    ) -> Self:
        """Load the base policy's weights strictly, then wrap, and resume the projector if the checkpoint has one.

        Raises:
            CheckpointError: Weights or projector are missing, damaged, or do not fit.
            ConfigError: No configuration of type ``sf_*`` was given.
        """
        if config is None:
            raise ConfigError(
                f"{cls.__name__}.from_pretrained needs config=: a checkpoint is one of the plain policy.",
                "Load the plain policy and use SpatialForcing.from_pretrained(policy, folder), or give the config.",
            )
        revision = kwargs.pop("revision", None)
        kwargs.pop("strict", None)
        folder = fetch(pretrained_name_or_path, revision)
        try:
            policy: Self = super().from_pretrained(folder, config=config, strict=False, deferred=True, **kwargs)
        except FAILURES as error:
            raise unreadable(folder, error) from error
        (policy._record or LoadRecord()).check(policy, folder)
        policy._record = None
        if config.use_peft:
            lora.expect_outer(policy)
        else:
            policy._wrap(policy, pretrained_name_or_path, revision)
        return policy

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As in torch; what was found is noted, because LeRobot does not always report it."""
        record = self._record = LoadRecord()
        try:
            found = super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            record.error = str(error)
            raise
        record.ran, record.missing, record.unexpected = True, list(found.missing_keys), list(found.unexpected_keys)
        return found

    # ------------------------------------------------------------------------------------------------ wrapping

    def _wrap(self, target: nn.Module, source: str | Path | None = None, revision: str | None = None) -> None:
        """Wrap ``target``, this policy or the PeftModel around it, and resume what ``source`` holds."""
        trainer = trainer_of(self, self.config, self._meta)
        block = self.config.sf
        arguments = block.admitted_arguments()
        arguments["adapter"] = adapter = self._adapter(arguments.get("adapter"))
        check_cameras(block.cameras)
        # The generic adapter finds depth and calibration by paths in the batch, or says that it cannot have them.
        by_paths = is_generic(adapter) and block.cameras is None
        rig = None if by_paths else cameras_of(self._meta, trainer, block.cameras)
        SpatialForcing.wrap(target, **arguments, cameras=rig)
        self._pending = False
        handle = _required(SpatialForcing.of(target), self)
        if not by_paths:
            require_cameras(handle, rig, self._meta, trainer)
        if source is not None:
            restore(handle, source, revision, trainer, arguments.keys())
            self._random = RandomState(source, handle) if trainer.resume else None
        if isinstance(handle.adapter, LeRobotAdapter):
            handle.adapter.frames = frames_of(handle, trainer)
        log_every(handle.adapter, trainer.log_freq, handle.steps)
        handle.warn_with(logger.warning)  # into LeRobot's log
        handle.after_save(add_to_readme)

    def _adapter(self, given: Any) -> Any:
        """The adapter, by name, with the statistics by which the policy normalizes pictures, if it takes them."""
        if isinstance(given, PolicyAdapter):
            return given
        spec = None if given is None else ComponentSpec.of(given)
        kind = self.config.base.adapter() if spec is None else adapter_named(spec.name)
        stats = picture_stats(self._meta, self.config) if "image_stats" in kind.Options.model_fields else None
        options = {} if stats is None else {"image_stats": stats}
        return (kind.name, {**options, **(spec.options if spec else {})})

    def get_optim_params(self) -> Any:
        """LeRobot's, and the projector in any case."""
        outer = lora.outer_of(self)
        if self._pending and outer is not None:
            # An adapter was loaded around this policy: only now is it complete.
            self._wrap(outer, self.config.pretrained_path, self.config.pretrained_revision)
            reach = lora.Reach.of(_required(self._present_handle(), self))
            if reach is not None:
                reach.require(self)
        handle = _required(self._present_handle(), self)
        hide_depth(self._meta, trainer_of(self, self.config, self._meta).rename_map)
        return lora.with_projector(super().get_optim_params(), handle.parameters)

    def train(self, mode: bool = True) -> Self:
        """As in torch; refuses a policy that waits for its adapter to be wrapped.

        Raises:
            GradientError: It waits still.
        """
        if mode and self._pending and lora.outer_of(self) is not None:
            raise GradientError(
                "The policy with its adapter was never wrapped, so nothing would be aligned.",
                "Build the optimizer from policy.get_optim_params() (LeRobot: --use_policy_training_preset=true).",
            )
        # LeRobot calls this before each step, when it has fetched the batch.
        if mode and self._random is not None and not self._random.restore_before(self._present_handle()):
            self._random = None
        changed: Self = super().train(mode)
        return changed

    def _present_handle(self) -> SpatialForcing | None:
        outer = lora.outer_of(self)
        return SpatialForcing.of(self if outer is None else outer)

    # ---------------------------------------------------------------------------------------------------- PEFT

    def wrap_with_peft(self, *args: object, **kwargs: object) -> nn.Module:
        """LoRA first, wrap second: unwrap, let LeRobot build the PeftModel, and wrap that.

        Raises:
            GradientError: The adapters lie where no gradient of the alignment passes.
        """
        reach = self._reach = lora.Reach.of(_required(self._present_handle(), self))
        SpatialForcing.unwrap(self)
        outer: nn.Module = super().wrap_with_peft(*args, **kwargs)
        if reach is not None:
            reach.require(self)
        lora.note_outer(self, outer)
        self._wrap(outer, self.config.pretrained_path, self.config.pretrained_revision)
        return outer

    def _get_default_peft_targets(self) -> dict[str, object] | None:
        defaults: dict[str, object] | None = super()._get_default_peft_targets()
        return defaults if self._reach is None else self._reach.added_to(defaults)

    # -------------------------------------------------------------------------------------------------- telling

    def generate_model_card(self, dataset_repo_id: str, model_type: str, *args: object, **kwargs: object) -> ModelCard:
        """LeRobot's card of the base policy, and what resuming needs."""
        card = super().generate_model_card(dataset_repo_id, self.config.base.name, *args, **kwargs)
        return add_to_card(card)


def _required(handle: SpatialForcing | None, policy: nn.Module) -> SpatialForcing:
    if handle is None:
        raise WrapError(
            f"{type(policy).__name__} is not wrapped, although its type says so.",
            "Somebody has unwrapped it: use the plain policy type instead.",
        )
    return handle


@functools.cache
def _make(config: type[SfConfig]) -> type[SfPolicy]:
    inner = config.base.policy_class
    members = {
        "config_class": config,
        "name": config.base.sf_type,
        "__module__": __name__,
        "__doc__": f"``{inner.__name__}``, aligned while it trains.",
    }
    made: type[SfPolicy] = type(inner)(config.__name__.replace("Config", "Policy"), (SfPolicy, inner), members)
    return made


def __getattr__(name: str) -> Any:
    for config in CONFIGS.values():
        if config.__name__ == f"{name.removesuffix('Policy')}Config":
            return _make(config)  # type: ignore[arg-type]  # a class has a hash, whatever its instances have
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
