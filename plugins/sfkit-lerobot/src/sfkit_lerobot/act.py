"""ACT (``lerobot.policies.act``): cells of a ResNet as tokens of a small transformer encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfkit.errors import ShapeError
from sfkit.policies.base import ForwardCall, TapPoint
from sfkit.views.types import FeatureMap, Views
from sfkit_lerobot.resnet import Crop, ResNetAdapter, size_of


class ACTAdapter(ResNetAdapter):
    """Sequence: latent, state and environment state if there are any, then the cells of each camera.

    Layer k is the state after k blocks of the transformer encoder. Layer 0 is the ResNet's last map, projected to the
    width of the transformer: aligned there, the ResNet alone is trained. From layer 1 on the tokens have also seen the
    state and the latent, which in training knows the actions.
    """

    name = "act"

    @property
    def num_layers(self) -> int:
        return len(self.policy.model.encoder.layers)

    def dim(self, layer: int) -> int:
        return int(self.policy.config.dim_model)

    def tap(self, layer: int) -> TapPoint:
        encoder = self.policy.model.encoder
        if layer == self.num_layers:
            return TapPoint(encoder.norm, "model.encoder.norm")
        return TapPoint(encoder.layers[layer], f"model.encoder.layers.{layer}")

    def stride(self, layer: int) -> int:
        return 16 if self.policy.config.replace_final_stride_with_dilation else 32

    def crops(self, pictures: Mapping[str, Tensor], stride: int, call: ForwardCall) -> dict[str, Crop]:
        sizes = {key: size_of(picture) for key, picture in pictures.items()}
        return {key: Crop.make(size, size, (0, 0), size, stride) for key, size in sizes.items()}

    def visual_tokens(self, hidden: Tensor, views: Views) -> FeatureMap:
        """``(n, b, d)``, with the sequence first, to tokens ``(b, v, gh, gw, d)``."""
        config, stride, v = self.policy.config, self.stride(0), len(views.names)
        before = 1 + bool(config.robot_state_feature) + bool(config.env_state_feature)
        grid = (views.size[0] // stride, views.size[1] // stride)
        expected = before + v * grid[0] * grid[1]
        if hidden.shape[0] != expected:
            raise ShapeError(
                f"The encoder of {type(self.policy).__name__} was given {hidden.shape[0]} tokens, expected {expected}: "
                f"{before} and {v} views of {grid[0]}x{grid[1]}.",
                "This version of LeRobot lays out its tokens in another way: the adapter must be changed.",
            )
        # ACT has the sequence in front of the batch.
        tokens = hidden[before:].transpose(0, 1)
        return FeatureMap(tokens.reshape(len(tokens), v, *grid, -1), views.token_mask(grid))
