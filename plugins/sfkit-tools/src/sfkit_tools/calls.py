"""Calling a policy as a training loop does, again and again, without leaving a trace in it or in the batch."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sfkit.errors import ConfigError, WrapError
from sfkit.training.attach import handle_of
from sfkit.utils.runtime import own_rng


@dataclass(frozen=True)
class Call:
    """How ``forward`` is called with a batch."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, batch: Any) -> Call:
        """A tuple is spread over the positions, a mapping over the keywords if they are forward's own.

        Raises:
            ConfigError: ``forward`` cannot be called so.
        """
        signature = inspect.signature(type(model).forward)
        names = list(signature.parameters)[1:]
        spread = isinstance(batch, Mapping) and len(batch) > 0 and all(isinstance(key, str) for key in batch)
        if isinstance(batch, tuple):
            call = cls(batch, {})
        elif spread and _are_keywords(signature, set(batch)):
            call = cls((), dict(batch))
        else:
            call = cls((batch,), {})
        try:
            signature.bind(model, *call.args, **call.kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{type(model).__name__}.forward({', '.join(names)}) cannot be called with this batch: {error}.",
                "Return (policy, batch), with a batch that is forward's only argument, a mapping of its keywords, or a "
                "tuple of its arguments.",
            ) from error
        return call

    def arguments(self, model: nn.Module) -> Mapping[str, Any]:
        """By parameter name, defaults included, as an adapter sees them."""
        bound = inspect.signature(type(model).forward).bind(model, *self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def run(self, model: nn.Module, changed: Mapping[int, Any] | None = None) -> Any:
        """Call the policy with a copy of the batch, from the same random numbers each time.

        Args:
            model: The policy.
            changed: What to put in the place of parts of the batch, by their ``id``.
        """
        memo: dict[int, Any] = dict(changed or {})
        try:
            args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)), memo)
        except (TypeError, RuntimeError) as error:
            raise ConfigError(f"The batch cannot be copied: {error}.", "Make it of plain tensors and lists.") from error
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with own_rng(device, seed=0), warnings.catch_warnings():
            if not torch.is_grad_enabled():  # of reentrant checkpoints, which mean a training step
                warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
            return model(*args, **kwargs)


def refuse_wrapped(model: nn.Module) -> None:
    """What sfkit adds would be looked at too.

    Raises:
        WrapError: The policy is wrapped.
    """
    if any(handle_of(module) is not None for module in model.modules()):
        raise WrapError(f"This {type(model).__name__} is wrapped already.", "Unwrap it, or look at it before.")


def _are_keywords(signature: inspect.Signature, keys: set[str]) -> bool:
    own = list(signature.parameters.values())[1:]
    named = {p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    rest = any(p.kind is p.VAR_KEYWORD for p in own)
    return keys <= named or (rest and bool(keys & named)) or (rest and not named)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block the policy trains; afterward modes, buffers and gradients are as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    model.train()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
