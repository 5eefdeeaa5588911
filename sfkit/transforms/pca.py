"""The target's first principal components."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfkit.config import Options
from sfkit.errors import CheckpointError, ConfigError
from sfkit.registry.component import AnyOptions, Reaching
from sfkit.transforms.base import Transform
from sfkit.transforms.random_projection import check_fewer
from sfkit.utils.runtime import is_distributed
from sfkit.views.types import FeatureMap


class PCAOptions(Options):
    """Options of :class:`PCATransform`."""

    dim: int = Field(ge=1, description="Channels of the target: the first so many components.")
    file: Reaching[str | None] = Field(
        default=None,
        description="Safetensors file with mean (d) and components (k, d), as PCATransform.save writes it; without "
        "one, the components of the first batch with valid tokens are taken and saved with the projector.",
    )


class PCATransform(Transform):
    """``C (t - m)``: ``m`` the mean, the rows of ``C`` the leading eigenvectors of the covariance of valid tokens.

    ``(b, v, gh, gw, d)`` to ``(b, v, gh, gw, k)``. Fitted once, before the first target is made, and fixed from then
    on: by :meth:`fit`, from ``file``, or on the first batch. Each eigenvector is given the sign that makes its largest
    entry positive. Source: Pearson (Philosophical Magazine 2, 1901).

    Raises:
        ConfigError: More channels are asked for than there are, too few valid tokens to fit on, or a first batch that
            would differ between ranks.
        CheckpointError: ``file`` is missing, damaged or does not fit.
    """

    name = "pca"
    Options: ClassVar[type[Options]] = PCAOptions
    options: PCAOptions
    mean: Tensor
    components: Tensor
    fitted: Tensor

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__(dim, options)
        check_fewer(self.name, dim, self.options.dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(self.options.dim, dim))
        self.register_buffer("fitted", torch.tensor(False))
        self._ready = False

    @property
    def out_dim(self) -> int:
        return self.options.dim

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        clean = features.sanitized()
        if not self._ready:
            self._prepare(clean)
        values = (clean.values.float() - self.mean) @ self.components.t()
        return FeatureMap(values, clean.mask).sanitized()

    def _prepare(self, features: FeatureMap) -> None:
        """Make sure of the components. Looked up here and not in the constructor: a resumed run has them saved."""
        if bool(self.fitted):
            self._ready = True
        elif self.options.file is not None:
            self._read(Path(self.options.file))
        elif is_distributed() and dist.get_world_size() > 1:
            raise ConfigError(
                f"Transform {self.name!r} would fit other components on each rank.",
                "Fit them in one process (PCATransform.fit and save), and give the option file.",
            )
        elif bool(features.mask.any()):
            self.fit(features)

    @torch.no_grad()
    def fit(self, *maps: FeatureMap) -> None:
        """Take the components of the valid tokens of ``maps``, each ``(b, v, *, *, dim)``.

        Raises:
            ConfigError: They are not more than the components asked for.
        """
        tokens = torch.cat([m.values[m.mask].double().cpu() for m in maps])
        if len(tokens) <= self.options.dim:
            raise ConfigError(
                f"Transform {self.name!r} has {len(tokens)} valid tokens to find {self.options.dim} components in.",
                "Take a larger batch, fewer components, or fit on several batches (PCATransform.fit) and give file.",
            )
        mean = tokens.mean(0)
        centered = tokens - mean
        _, vectors = torch.linalg.eigh(centered.t() @ centered)
        leading = vectors.flip(1)[:, : self.options.dim].t()
        largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
        self._keep(mean, leading * largest.sign())

    def save(self, path: str | Path) -> None:
        """Write mean and components, for the option ``file``."""
        save_file({"mean": self.mean.cpu(), "components": self.components.cpu()}, path)

    def _read(self, path: Path) -> None:
        try:
            found = load_file(path)
            shapes = {key: tuple(value.shape) for key, value in found.items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} could not be read: {error}", "Write it with PCATransform.save.") from error
        expected = {"mean": tuple(self.mean.shape), "components": tuple(self.components.shape)}
        if shapes != expected:
            raise CheckpointError(
                f"{path} holds {shapes}, expected {expected}.", "Was it fitted on another teacher, or for another dim?"
            )
        self._keep(found["mean"], found["components"])

    @torch.no_grad()
    def _keep(self, mean: Tensor, components: Tensor) -> None:
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.fitted.fill_(True)
        self._ready = True
