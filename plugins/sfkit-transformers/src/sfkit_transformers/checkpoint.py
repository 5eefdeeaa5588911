"""Read a model of the Hub or of a folder: configuration, image processor and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from sfkit_backbones.weights import without_weights
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from sfkit.errors import CheckpointError
from sfkit_transformers.backbone import UNUSED
from sfkit_transformers.failures import explained
from sfkit_transformers.reaching import refuse_other_places

#: Parts of checkpoints that patch tokens do not need; each is one component of a key.
_BESIDE = (
    *UNUSED,
    *("text_model", "text_projection", "visual_projection", "logit_scale", "logit_bias", "position_ids"),
    *("classifier", "cls_classifier", "distillation_classifier", "decoder", "neck", "mask_token"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A model of transformers.

    Attributes:
        model: Repository of the Hub, or a local folder.
        revision: Commit, tag or branch of the repository.
        trust_remote_code: Run code from the repository, if the model needs it.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, if ``model`` names one.

        Raises:
            CheckpointError: ``model`` is a path, and no folder is there.
        """
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if path.is_file():
            raise CheckpointError(f"{path} is a file.", "Give the folder that holds it beside config.json.")
        if path.is_absolute() or self.model.startswith((".", "~")):
            raise CheckpointError(f"There is no folder {path}.", "Check the path of the model.")
        return None

    @property
    def place(self) -> str:
        """Argument of ``from_pretrained``: the folder or the repository."""
        return str(self.folder or self.model)

    def config(self) -> PretrainedConfig:
        """The configuration of the whole model.

        Raises:
            TrustError: A file of the model points outside the model.
        """
        with self._reading("the configuration"):
            refuse_other_places(self.model, self.folder, self.revision)
            return transformers.AutoConfig.from_pretrained(self.place, **self._arguments)

    def processor(self, feed: str) -> Mapping[str, Any]:
        """Settings of the image (or video) processor; empty if the model has none."""
        if self.folder is not None and not list(self.folder.glob("*processor_config.json")):
            return {}
        kind = "AutoVideoProcessor" if feed == "clip" else "AutoImageProcessor"
        with self._reading("the image processor"):
            processor = getattr(transformers, kind).from_pretrained(self.place, **self._arguments)
        settings: dict[str, Any] = processor.to_dict()
        return settings

    def network(self, config: PretrainedConfig, ignored: Iterable[str] = ()) -> nn.Module:
        """The vision model with its weights in float32, on the CPU.

        Args:
            config: The result of :meth:`config`.
            ignored: Further parts of the checkpoint that patch tokens do not need, by a component of their keys.

        Raises:
            CheckpointError: The weights cannot be read, or keys or shapes do not fit (the message names each).
        """
        loader = transformers.AutoModel
        wanted = vision_config(config)
        if _in_backbone(config):
            loader, wanted = transformers.AutoModelForDepthEstimation, config
        dtype = "dtype" if _release() >= (4, 56) else "torch_dtype"
        with self._reading("the weights"):
            model, report = loader.from_pretrained(
                self.place,
                config=wanted,
                use_safetensors=True,
                output_loading_info=True,
                # self._check compares shapes, and its message names each key.
                ignore_mismatched_sizes=True,
                **{dtype: torch.float32},
                **self._arguments,
            )
        self._check(report, tuple(ignored))
        network = _backbone_alone(model, config) if _in_backbone(config) else model
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise CheckpointError(f"{self.model}: {name!r} holds NaN or infinite values.", "Fetch it again.")
        return network

    def skeleton(self, config: PretrainedConfig) -> nn.Module:
        """The vision model on the meta device."""
        with self._reading("the configuration"), without_weights():
            model: nn.Module = transformers.AutoModel.from_config(
                vision_config(config), trust_remote_code=self.trust_remote_code
            )
        return model

    @property
    def _arguments(self) -> dict[str, str | bool]:
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        verbosity = transformers_logging.get_verbosity()
        # transformers logs every unused key; self._check reports those that matter.
        transformers_logging.set_verbosity_error()
        try:
            with explained(self.model, self.revision, what):
                yield
        finally:
            transformers_logging.set_verbosity(verbosity)

    def _check(self, report: Mapping[str, Any], ignored: tuple[str, ...]) -> None:
        faults = []
        for title, keys, unused in (
            ("missing", report["missing_keys"], _BESIDE),
            ("unexpected", report["unexpected_keys"], (*_BESIDE, *ignored)),
            ("wrong shape", [_mismatch(item) for item in report["mismatched_keys"]], _BESIDE),
        ):
            beside = re.compile("|".join(rf"(^|\.){re.escape(name)}(\.|$)" for name in unused))
            named = sorted(key for key in keys if not beside.search(key.split(" ")[0]))
            if named:
                rest = f" and {len(named) - 6} more" if len(named) > 6 else ""
                faults.append(f"{title} ({len(named)}): {', '.join(named[:6])}{rest}.")
        if faults or report.get("error_msgs"):
            raise CheckpointError(
                f"The weights of {self.model} do not fit its configuration. "
                + " ".join([*faults, *map(str, report.get("error_msgs", ()))]),
                "Missing weights would be random. Is the model complete, and are config.json and the weights of one "
                "model? Parts of the file that patch tokens do not need can be named in the option ignore.",
            )


def vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the vision model within ``config``."""
    for name in ("vision_config", "backbone_config"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return config


def commit_of(config: PretrainedConfig) -> str | None:
    """The commit of the Hub repository that ``config`` comes from."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found


def _in_backbone(config: PretrainedConfig) -> bool:
    return getattr(config, "backbone_config", None) is not None


def _backbone_alone(whole: transformers.PreTrainedModel, config: PretrainedConfig) -> nn.Module:
    # AutoModel instead of AutoBackbone, whose forward keeps the outputs of all layers.
    with without_weights():
        model: nn.Module = transformers.AutoModel.from_config(config.backbone_config)
    model.load_state_dict(whole.backbone.state_dict(), assign=True)
    return model.eval()


def _mismatch(item: str | tuple[str, Sequence[int], Sequence[int]]) -> str:
    # Releases of transformers differ in what they report.
    if isinstance(item, str):
        return item
    key, found, expected = item
    return f"{key} is {tuple(found)}, expected {tuple(expected)}"


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
