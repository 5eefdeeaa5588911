"""Target transforms to fewer channels: principal components, and a random projection."""

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
from sfkit.utils.runtime import is_distributed
from sfkit.views.types import FeatureMap


class DimOptions(Options):
    """Options of transforms to fewer channels."""

    dim: int = Field(ge=1, description="Channels of the target.")


class _Reduction(Transform):
    """A transform to ``options.dim`` channels.

    Raises:
        ConfigError: More channels are requested than there are.
    """

    options: DimOptions

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__(dim, options)
        if self.out_dim > dim:
            raise ConfigError(f"Transform {self.name!r} has dim={self.out_dim}, the features have {dim}.", "Lower dim.")

    @property
    def out_dim(self) -> int:
        return self.options.dim


class RandomProjectionOptions(DimOptions):
    """Options of :class:`RandomProjection`."""

    seed: int = Field(default=0, ge=0, description="Of the matrix, which is also saved with the projector.")


class RandomProjection(_Reduction):
    """``R t`` with ``R_ij ~ N(0, 1 / k)``, fixed: it keeps lengths and angles up to about ``1 / sqrt(k)``.

    Source: the lemma of Johnson and Lindenstrauss (Contemporary Mathematics 26, 1984); Dasgupta and Gupta (Random
    Structures and Algorithms 22, 2003) for this matrix.
    """

    name = "random-projection"
    Options: ClassVar[type[Options]] = RandomProjectionOptions
    options: RandomProjectionOptions
    matrix: Tensor

    def __init__(self, dim: int, options: AnyOptions = None) -> None:
        super().__init__(dim, options)
        # A generator of its own: the matrix depends on the seed alone, and the global random state stays.
        generator = torch.Generator().manual_seed(self.options.seed)
        self.register_buffer("matrix", torch.randn(self.out_dim, dim, generator=generator) / self.out_dim**0.5)

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, gh, gw, d)`` to ``(b, v, gh, gw, k)``."""
        return FeatureMap(features.sanitized().values.float() @ self.matrix.t(), features.mask)


class PCAOptions(DimOptions):
    """Options of :class:`PCATransform`."""

    file: Reaching[str | None] = Field(default=None, description="By PCATransform.save; default: fit the first batch.")


class PCATransform(_Reduction):
    """``C (t - m)``: ``m`` the mean, the rows of ``C`` the leading eigenvectors of the covariance of valid tokens.

    Mean and components come from :meth:`fit`, from ``file``, or from the first batch, and then stay fixed. The sign of
    each eigenvector is the one that makes its largest entry positive. Source: Pearson (Philosophical Magazine 2, 1901).

    Raises:
        ConfigError: More channels are requested than there are, there are too few valid tokens to fit on, or the first
            batch would differ between ranks.
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
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(self.out_dim, dim))
        self.register_buffer("fitted", torch.tensor(False))
        # The buffer's value on the host: reading the buffer would wait for the device in each step.
        self._ready = False

    def forward(self, features: FeatureMap, wanted: Tensor) -> FeatureMap:
        """``(b, v, gh, gw, d)`` to ``(b, v, gh, gw, k)``."""
        clean = features.sanitized()
        if not self._ready:
            self._prepare(clean)
        values = (clean.values.float() - self.mean) @ self.components.t()
        return FeatureMap(values, clean.mask).sanitized()

    def _prepare(self, features: FeatureMap) -> None:
        """Fit or read the components, here and not in the constructor: a resumed run has them in its checkpoint."""
        if bool(self.fitted):
            self._ready = True
        elif self.options.file is not None:
            self._read(Path(self.options.file))
        elif is_distributed() and dist.get_world_size() > 1:
            raise ConfigError(
                f"Transform {self.name!r} would differ between ranks.", "Fit and save it in one process, and give file."
            )
        elif bool(features.mask.any()):
            self.fit(features)

    @torch.no_grad()
    def fit(self, *maps: FeatureMap) -> None:
        """Take the components of the valid tokens of ``maps``, each ``(b, v, *, *, dim)``.

        Raises:
            ConfigError: There are not more tokens than components.
        """
        # In float64 on the host, so that the components do not depend on the device.
        tokens = torch.cat([m.values[m.mask].double().cpu() for m in maps])
        if len(tokens) <= self.out_dim:
            raise ConfigError(
                f"Transform {self.name!r} has {len(tokens)} valid tokens to find {self.out_dim} components in.",
                "Take a larger batch, fewer components, or fit on several batches (PCATransform.fit) and give file.",
            )
        mean = tokens.mean(0)
        centered = tokens - mean
        # eigh sorts eigenvalues in ascending order.
        _, vectors = torch.linalg.eigh(centered.t() @ centered)
        leading = vectors.flip(1)[:, : self.out_dim].t()
        largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
        self._keep(mean, leading * largest.sign())

    def save(self, path: str | Path) -> None:
        """Write mean and components, for the option ``file``."""
        save_file({"mean": self.mean.cpu(), "components": self.components.cpu()}, path)

    def _read(self, path: Path) -> None:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} could not be read: {error}", "Write it with PCATransform.save.") from error
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        expected = {"mean": tuple(self.mean.shape), "components": tuple(self.components.shape)}
        if shapes != expected:
            raise CheckpointError(
                f"{path} holds {shapes}, expected {expected}.", "Was it fitted on another teacher, or for another dim?"
            )
        self._keep(**tensors)

    @torch.no_grad()
    def _keep(self, mean: Tensor, components: Tensor) -> None:
        """Set the ``(d,)`` mean and ``(k, d)`` components."""
        self.mean.copy_(mean)
        self.components.copy_(components)
        self.fitted.fill_(True)
        self._ready = True
