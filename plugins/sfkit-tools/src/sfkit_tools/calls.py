"""Call a policy repeatedly as a training loop does, without changing the policy or the batch."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sfkit.errors import ConfigError, WrapError
from sfkit.utils.runtime import own_rng
from sfkit_tools.capture import is_wrapped


@dataclass(frozen=True)
class Call:
    """The arguments of ``forward`` for a batch."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    @classmethod
    def of(cls, model: nn.Module, batch: object) -> Call:
        """A tuple becomes positional arguments; a mapping becomes keywords if ``forward`` has these parameters.

        Raises:
            ConfigError: ``forward`` does not accept the arguments.
        """
        signature = inspect.signature(type(model).forward)
        names = list(signature.parameters)[1:]
        keywords = dict(batch) if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch) else {}
        if isinstance(batch, tuple):
            call = cls(batch, {})
        elif keywords and _are_keywords(signature, set(keywords)):
            call = cls((), keywords)
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

    def arguments(self, model: nn.Module) -> Mapping[str, object]:
        """The arguments by parameter name, with defaults, as adapters get them."""
        bound = inspect.signature(type(model).forward).bind(model, *self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    def run(self, model: nn.Module, changed: Mapping[int, object] | None = None) -> object:
        """Call the policy with a copy of the batch, with the same random numbers each time.

        Args:
            model: The policy.
            changed: Replacements for parts of the batch, by the ``id`` of the part.
        """
        # deepcopy takes the memo's entry for a part instead of copying the part.
        memo = dict(changed or {})
        try:
            args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)), memo)
        except (TypeError, RuntimeError) as error:
            raise ConfigError(f"The batch cannot be copied: {error}.", "Make it of plain tensors and lists.") from error
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with own_rng(device, seed=0), warnings.catch_warnings():
            # Reentrant checkpoints warn without gradients, where no training step runs.
            if not torch.is_grad_enabled():
                warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
            return model(*args, **kwargs)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a wrapped policy: the inspection would find the projector among the policy's own modules.

    Raises:
        WrapError: The policy is wrapped.
    """
    if is_wrapped(model):
        raise WrapError(f"This {type(model).__name__} is wrapped already.", "Unwrap it, or inspect it before wrapping.")


def _are_keywords(signature: inspect.Signature, keys: set[str]) -> bool:
    own = list(signature.parameters.values())[1:]
    named = {p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    rest = any(p.kind is p.VAR_KEYWORD for p in own)
    return keys <= named or (rest and bool(keys & named)) or (rest and not named)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Train mode inside the block; modes, buffers and gradients are restored at its end."""
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
