"""Random weights under which every part of a network changes the output, for parity fixtures and tests."""

from __future__ import annotations

import torch
from torch import nn

from sfkit.utils.runtime import own_rng

_WRITES_TO_STREAM = ("proj", "fc2", "w3")


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 0, *, stream: float = 1.0) -> nn.Module:
    """Fill all parameters in place from a generator of their own, and return the network.

    A freshly initialized network hides faults: its special tokens are near zero, its layer scales are small, its biases
    are zero. Here matrices and kernels keep the scale of their input, factors (``weight`` of norms, ``gamma``) lie
    around one, biases around zero, and tokens and position tables have unit scale.

    Args:
        network: The network.
        seed: Seed of the generator.
        stream: Scale of everything that enters the residual stream: tokens, tables, and the last layer of each branch.
    """
    with own_rng(seed=seed):
        for name, parameter in network.named_parameters():
            owner, _, leaf = name.rpartition(".")
            noise = torch.randn(parameter.shape)
            if leaf == "gamma" or (leaf == "weight" and parameter.ndim == 1):
                value = 1 + 0.2 * noise
            elif leaf == "bias":
                value = 0.1 * noise
            elif leaf == "weight":
                value = noise * parameter[0].numel() ** -0.5
            else:
                value = stream * noise
            if owner.rpartition(".")[2] in _WRITES_TO_STREAM:
                value = stream * value
            parameter.copy_(value)
    return network
