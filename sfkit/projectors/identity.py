"""No projector at all, and none that would be of use."""

from __future__ import annotations

from torch import Tensor

from sfkit.errors import ConfigError
from sfkit.projectors.base import Projector
from sfkit.registry.component import AnyOptions


class IdentityProjector(Projector):
    """The tokens as they are, ``(b, v, gh, gw, d)``: the policy itself must speak the teacher's language.

    Raises:
        ConfigError: Student and teacher differ in width.
    """

    name = "identity"

    def __init__(self, student_dim: int, teacher_dim: int, options: AnyOptions = None) -> None:
        super().__init__(student_dim, teacher_dim, options)
        if student_dim != teacher_dim:
            raise ConfigError(
                f"Projector {self.name!r} changes no width, but the student has {student_dim} channels and the target "
                f"{teacher_dim}.",
                'Choose another projector, such as "linear", or bring the target to that width with the transform '
                '"pca" or "random-projection".',
            )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens
