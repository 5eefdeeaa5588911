"""Attaching to a policy object: its class is swapped in place for a subclass that overrides ``forward``.

The idiom is that of torch's own ``fully_shard`` and ``parametrize``. Everything that is added hangs from one name,
``policy.spatial_forcing``, so that ``isinstance``, attribute access and the framework's own save paths keep working.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, cast

import torch
from torch import nn

from sfkit.errors import SfkitWarning, WrapError
from sfkit.utils.runtime import is_sharded

if TYPE_CHECKING:
    from sfkit.wrap import SpatialForcing

Value = TypeVar("Value")

HANDLE = "spatial_forcing"
_MARK = "_sfkit_base"
_WRAPPERS = {
    "DistributedDataParallel": "DDP",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP2 (fully_shard)",
    "DeepSpeedEngine": "DeepSpeed",
    "OptimizedModule": "torch.compile",
}
_FORCED: dict[type[nn.Module], type[nn.Module]] = {}
_ORDER = "Order: LoRA first, SpatialForcing.wrap second, then the optimizer and prepare / DDP / FSDP / compile."


def base_of(policy: object) -> type[nn.Module] | None:
    """The class that a wrapped object had before, or None for an object that is not wrapped.

    Only the class's own mark counts: a subclass of a swapped class is somebody else's, unless FSDP2 has made it.
    """
    cls = type(policy)
    if [base.__name__ for base in cls.__bases__[:-1]] == ["FSDPModule"]:
        cls = cls.__bases__[-1]
    return cast("type[nn.Module] | None", cls.__dict__.get(_MARK))


def handle_of(policy: nn.Module) -> Any:
    """The handle registered on a policy, or None."""
    return policy._modules.get(HANDLE)


def attach(policy: nn.Module, handle: nn.Module) -> None:
    """Register the handle and swap the class."""
    policy.add_module(HANDLE, handle)
    policy.__class__ = forced_class(type(policy))


def detach(policy: nn.Module) -> SpatialForcing:
    """Undo ``attach`` and return the handle.

    Raises:
        WrapError: The class is not one of ours, or FSDP2 has scattered the parameters.
    """
    base = base_of(policy)
    if base is None:
        raise WrapError(
            f"{type(policy).__name__} is not wrapped by sfkit.",
            "Unwrap the object that SpatialForcing.wrap returned (under DDP or compile that is its inner module).",
        )
    if is_sharded(policy):
        raise WrapError(
            f"FSDP2 has scattered the parameters of this {base.__name__}, the projector's among them.",
            "Save it (SpatialForcing.export), and load what was saved.",
        )
    policy.__class__ = base
    return cast("SpatialForcing", policy._modules.pop(HANDLE))


@contextmanager
def detached(policy: nn.Module) -> Iterator[SpatialForcing]:
    """Within the block the policy is exactly what it was before ``wrap``; yields the handle.

    Under FSDP2 only the handle is gone: the class, which is FSDP2's, gathers the parameters.
    """
    sharded = is_sharded(policy) and base_of(policy) is not None
    handle = cast("SpatialForcing", policy._modules.pop(HANDLE)) if sharded else detach(policy)
    try:
        yield handle
    finally:
        if sharded:
            policy._modules[HANDLE] = handle
        else:
            attach(policy, handle)


def export(policy: Any, directory: str | Path) -> None:
    """Write what the policy's own ``save_pretrained`` would write.

    Raises:
        WrapError: The object is not wrapped, or has no ``save_pretrained``.
    """
    with detached(policy):
        if not callable(getattr(policy, "save_pretrained", None)):
            raise WrapError(
                f"{type(policy).__name__} has no save_pretrained, so it is for you to write it.",
                "policy.spatial_forcing.save(directory) writes the projector; then "
                "SpatialForcing.unwrap(policy).state_dict() is the plain policy's.",
            )
        policy.save_pretrained(directory)


def forced_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``base`` that aligns. One for each base, with the base's name, signature and documentation."""
    if base in _FORCED:
        return _FORCED[base]

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        handle: SpatialForcing | None = handle_of(self)
        if handle is None:
            return base.forward(self, *args, **kwargs)
        return handle.wrapped_forward(self, functools.partial(base.forward, self), args, kwargs)

    # Trainers read the signature to decide which columns of a batch to pass on.
    functools.update_wrapper(forward, base.forward)
    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]

    def __reduce_ex__(self: nn.Module, protocol: SupportsIndex) -> object:  # noqa: N807 - a dunder by design
        reduced = base.__reduce_ex__(self, protocol)
        # object's own recipe names the class by its qualified name, which leads to the base: rebuild from there.
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_rebuild, (base, *reduced[1][1:]), *reduced[2:])
        return reduced

    # Dynamo must not trace this frame: it would inline the handle. The base's forward is compiled on its own.
    torch.compiler.disable(forward, recursive=False)  # type: ignore[no-untyped-call]
    members = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {_MARK: base, "forward": forward, "__reduce_ex__": __reduce_ex__}
    if callable(getattr(base, "save_pretrained", None)):
        members["save_pretrained"] = _save_pretrained(base)
    metaclass: Any = type(base)
    return _FORCED.setdefault(base, metaclass(base.__name__, (base,), members))


def _save_pretrained(base: Any) -> Callable[..., object]:
    @functools.wraps(base.save_pretrained)
    def save_pretrained(self: nn.Module, save_directory: str | Path, *args: object, **kwargs: Any) -> object:
        if handle_of(self) is None:  # the class stays where FSDP2 has made one from it
            return base.save_pretrained(self, save_directory, *args, **kwargs)
        given = kwargs.get("state_dict")
        if given is not None:
            kwargs["state_dict"] = without_handle(given)
        if kwargs.get("push_to_hub"):
            rest = "policy.push_to_hub(...)" if hasattr(base, "push_to_hub") else "huggingface_hub.upload_folder(...)"
            message = f"push_to_hub=True uploads the policy's own files only; {rest} uploads all."
            warnings.warn(f"sfkit: {message}", SfkitWarning, stacklevel=2)
        with detached(self) as handle:
            result = base.save_pretrained(self, save_directory, *args, **kwargs)
        if handle.save(save_directory, given):
            for after_save in handle.save_callbacks:
                after_save(Path(save_directory))
        return result

    return save_pretrained


def without_handle(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict without what sfkit added."""
    prefix = f"{HANDLE}."
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def _rebuild(base: type[nn.Module], *args: object) -> nn.Module:
    return forced_class(base).__new__(forced_class(base), *args)


def refuse_unwrappable(policy: object) -> None:
    """Explain why an object cannot be wrapped now, naming who changed it and the right order.

    Raises:
        WrapError: It is not a module, is wrapped already, or is inside DDP, FSDP, DeepSpeed, accelerate or compile.
    """
    if not isinstance(policy, nn.Module):
        raise WrapError(f"SpatialForcing.wrap needs a torch.nn.Module, got {type(policy).__name__}.")
    if handle_of(policy) is not None:
        raise WrapError(
            f"This {type(policy).__name__} is wrapped already.",
            "Call SpatialForcing.unwrap(policy) first, or give all pairs in one call with pairs=[...].",
        )
    for path, module in policy.named_modules():
        where = f"The policy's submodule {path!r}" if path else "The policy"
        # By name, as not all of them are in every torch.
        classes = [c for c in type(module).__mro__ if c.__module__.split(".")[0] in ("torch", "deepspeed")]
        wrapper = next((_WRAPPERS[cls.__name__] for cls in classes if cls.__name__ in _WRAPPERS), None)
        if wrapper is not None and not (path and wrapper == "torch.compile"):
            raise WrapError(
                f"{where} is already inside {wrapper}.", f"Wrap {'the whole policy' if path else 'it'} before. {_ORDER}"
            )
        compiled = hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if compiled or getattr(module, "_compiled_call_impl", None) is not None:
            raise WrapError(
                f"{where} is compiled already: a tap installed now would never fire.",
                f"Compile after wrapping (LeRobot: compile_model=false, then compile). {_ORDER}",
            )
    if any(hasattr(parameter, "ds_id") for parameter in policy.parameters()):
        raise WrapError(
            f"DeepSpeed ZeRO-3 has split the parameters of this {type(policy).__name__}: here they are empty.",
            f"Use ZeRO-1 or ZeRO-2, DDP or FSDP2. {_ORDER}",
        )
    if "forward" in vars(policy):
        culprit = "accelerate's prepare" if "_original_forward" in vars(policy) else "somebody"
        raise WrapError(f"{culprit} has replaced this object's own `forward`, which would hide sfkit's.", _ORDER)
