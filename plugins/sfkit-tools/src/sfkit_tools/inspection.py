"""Inspect a policy: run a training step, then find the tokens that change with the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfkit.errors import AdapterError, SfkitError, ViewsError
from sfkit.factory.components import inside_peft
from sfkit.policies.base import ForwardCall
from sfkit.policies.generic import GenericAdapter
from sfkit.policies.generic.pixels import likely_pixels
from sfkit_tools.blocks import Candidate, find_candidates
from sfkit_tools.calls import Call, refuse_wrapped, undisturbed
from sfkit_tools.capture import trains_policy
from sfkit_tools.dry_run import DryStep, dry_step
from sfkit_tools.image_inputs import ImageReading, chosen_images, find_images, leaves
from sfkit_tools.image_tokens import Found, Prober, as_tokens, find_tokens
from sfkit_tools.report import NEEDED, AdapterArguments, Inspection, StackFinding, TapFinding

#: The tokens count as found if at least this share of changed patches moves its own token most.
_SURE = 0.75


def inspect_policy(model: nn.Module, batch: object, *, images: Sequence[str] = ()) -> Inspection:
    """Find the options of a :class:`sfkit.GenericAdapter` for a policy.

    The policy runs a training step without an optimizer, and then its forward for each changed image (ten for each
    view). Parameters, buffers, gradients, modes and the batch are restored.

    Args:
        model: The policy.
        batch: The only argument of its ``forward``, a mapping of keywords, or a tuple of positional arguments.
        images: Paths of the images in the batch; by default the inspection looks for them.

    Raises:
        AdapterError: The policy holds no list of blocks of one class.
        ConfigError: ``forward`` does not accept the batch.
        ViewsError: A path in ``images`` does not exist.
        WrapError: The policy is wrapped.
    """
    refuse_wrapped(model)
    policy = inside_peft(model)
    call = Call.of(policy, batch)
    candidates = find_candidates(policy)
    if not candidates:
        raise AdapterError(
            f"{type(policy).__name__} holds no row of two or more blocks of one class.",
            "A policy without blocks cannot be tapped by layer; write a PolicyAdapter.",
        )
    arguments = call.arguments(policy)
    samples = _samples(arguments)
    readings = chosen_images(arguments, policy, images, samples) if images else find_images(arguments, policy, samples)
    with undisturbed(model):
        step = dry_step(model, call, candidates)
        prober = Prober(model, call, candidates)
        found = _best(find_tokens(prober, candidates, readings, samples), step)
        return _report(_Evidence(policy, arguments, candidates, step, readings), found)


def _samples(arguments: Mapping[str, object]) -> int:
    """Number of samples in a batch: the most frequent length of its tensors; images may be stacked over views."""
    lengths = Counter(
        len(leaf) for _, leaf in leaves(arguments) if isinstance(leaf, list) or (leaf.ndim and leaf.ndim < 4)
    )
    if not lengths:
        lengths = Counter(len(leaf) for _, leaf in leaves(arguments) if isinstance(leaf, list) or leaf.ndim)
    most = max(lengths.values(), default=0)
    return min((length for length, count in lengths.items() if count == most), default=1)


def _best(found: Iterator[Found], step: DryStep) -> Found | None:
    """The first sure reading of the images; among the stacks that it holds for, the last one to run."""
    kept: list[Found] = []
    for each in found:
        if kept and kept[-1].hits >= _SURE and each.index != kept[-1].index:
            break
        kept.append(each)

    def rank(each: Found) -> tuple[bool, float, int]:
        tap = each.candidate.taps[0]
        assert tap is not None
        sure = each.hits >= _SURE
        return sure, 0.0 if sure else each.hits, step.log.order(tap[0])

    return max(kept, key=rank, default=None)


@dataclass(frozen=True)
class _Evidence:
    """Inputs of the report."""

    policy: nn.Module
    arguments: Mapping[str, object]
    candidates: Sequence[Candidate]
    step: DryStep
    readings: Sequence[ImageReading]


def _report(seen: _Evidence, found: Found | None) -> Inspection:
    notes = list(seen.step.remarks)
    options: AdapterArguments = {}
    taps: tuple[TapFinding, ...] = ()
    if found is None:
        notes.append(_why_nothing(seen.readings))
    else:
        options = _options(found, seen, notes)
        trained = _trained(found, seen, options, notes)
        taps = tuple(
            TapFinding(layer, path, seen.step.log.count(module), seen.step.gradients.get(module), trained.get(layer))
            for layer, (module, path) in found.candidate.fired
        )
        _warn_of_layers(taps, len(found.candidate.blocks), notes)
    stacks = tuple(_stack(candidate, seen.step, found) for candidate in seen.candidates)
    hits = None if found is None else found.hits
    return Inspection(type(seen.policy).__name__, stacks, taps, options, hits, tuple(notes))


def _why_nothing(readings: Sequence[ImageReading]) -> str:
    if not readings:
        return "Nothing in the batch looks like images: name them with images (--images PATH)."
    seen = ", ".join(dict.fromkeys(str(each.paths) for each in readings))
    return (
        f"Changing the images ({seen}) moves no token at the first block of any stack, or not as many for each view. "
        "Either these are not the images, or they enter the blocks in another way (cross-attention), which needs a "
        "PolicyAdapter."
    )


def _options(found: Found, seen: _Evidence, notes: list[str]) -> AdapterArguments:
    ids = {
        path: leaf
        for path, leaf in leaves(seen.arguments)
        if isinstance(leaf, Tensor) and leaf.ndim == 2 and not leaf.is_floating_point() and leaf.dtype != torch.bool
    }
    tokens, remark = as_tokens(found, ids)
    if remark:
        notes.append(remark)
    raw = found.images.raw()
    pixels = likely_pixels(raw)
    if pixels is None:
        notes.append("No normalization that sfkit knows fits the images: pixels=MeanStd(mean, std).")
    elif pixels in ("clip", "imagenet"):
        notes.append(f"pixels={pixels!r} is a guess; 'clip' and 'imagenet' hardly differ. Look at the image processor.")
    options: AdapterArguments = {
        "blocks": found.candidate.path,
        "tokens": tokens,
        "grid": (found.images.views, *found.cells),
        **found.images.layout_options(),
        "pixels": pixels,
        "norm": found.candidate.norm,
        "resize": _resize(raw.shape[-2:], found.cells, notes),
        "loss": seen.step.where,
    }
    if found.hits < _SURE:
        notes.append(
            f"Only {found.hits:.0%} of the changed patches moved their own token most, so grid and order of the tokens "
            "are not sure. The images may be letterboxed, cropped, or mixed by a strong vision tower."
        )
    if found.candidate.taps[-1] is None:
        notes.append("After the last block no norm was found: add final_norm if you want to align there.")
    return {name: value for name, value in options.items() if value is not None or name in NEEDED}


def _resize(size: Sequence[int], cells: tuple[int, int], notes: list[str]) -> tuple[int, int] | None:
    """The option ``resize``: the views must divide into the grid."""
    fitting = tuple(max(1, round(side / count)) * count for side, count in zip(size, cells, strict=True))
    if fitting == tuple(size):
        return None
    notes.append(
        f"Images of {size[0]}x{size[1]} pixels do not divide into {cells[0]}x{cells[1]} tokens: the policy resizes "
        f"them. resize={fitting} stretches the teacher's to the nearest size that does; its own size is better."
    )
    return fitting[0], fitting[1]


def _trained(found: Found, seen: _Evidence, options: AdapterArguments, notes: list[str]) -> dict[int, bool]:
    """Try the adapter on the training step: whether the gradient of its tokens trains the policy, by layer."""
    trained: dict[int, bool] = {}
    if any(options[name] is None for name in ("tokens", "pixels")):
        return trained
    try:
        adapter = GenericAdapter(**options).bind(seen.policy)
        views = adapter.views(ForwardCall(seen.arguments, seen.step.output))
        for layer, (module, _) in found.candidate.fired:
            state = seen.step.log.first(module)
            assert state is not None
            student = adapter.visual_tokens(state, views)
            expected = state.gather(1, found.patches.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
            if not torch.equal(student.values.flatten(1, 3), expected):
                raise ViewsError("It cuts out other tokens than those that moved.")
            trained[layer] = trains_policy(student)
    except SfkitError as error:
        notes.append(f"The adapter below does not work on this batch: {error}")
    except RuntimeError as error:
        notes.append(f"Whether the visual tokens' gradient trains anything could not be verified: {error}")
    return trained


def _warn_of_layers(taps: Sequence[TapFinding], blocks: int, notes: list[str]) -> None:
    trained = {tap.student_layer: tap.trained for tap in taps}
    working = [layer for layer, trains in trained.items() if trains]
    default = max(1, round(2 * blocks / 3))
    if taps and all(trains is False for trains in trained.values()):
        notes.append(
            "The gradient of the visual tokens reaches no trainable parameter at any layer: unfreeze the backbone, or "
            "put LoRA on it."
        )
    elif working and trained.get(default) is False:
        notes.append(f"The default student layer {default} trains nothing: choose student_layer={working[-1]}.")


def _stack(candidate: Candidate, step: DryStep, found: Found | None) -> StackFinding:
    fired = [tap for layer, tap in candidate.fired if layer < len(candidate.blocks)]
    first = step.log.first(fired[0][0]) if fired else None
    gradients = [step.gradients[module] for module, _ in fired if module in step.gradients]
    tap = "nothing fires"
    if fired:
        own = fired[0][1].removeprefix(candidate.path).partition(".")[2].partition(".")[2]
        tap = own or "the block"
    return StackFinding(
        path=candidate.path,
        kind=candidate.kind,
        blocks=len(candidate.blocks),
        parameters=candidate.size,
        tap=tap,
        fired=len(fired),
        shape=() if first is None else tuple(first.shape),
        gradient=max(gradients, default=None),
        reaches=step.reaches(fired[-1][0]) if fired else 0,
        sees=found is not None and found.candidate is candidate,
    )
