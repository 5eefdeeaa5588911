"""Mutants of what is saved and resumed, and of the registry."""

from __future__ import annotations

from mutant import Mutant

ALIGNER = "sfkit/aligner.py"
REGISTRY = "sfkit/registry.py"

SAVING = (
    # ---------------------------------------------------------------------------------------------- saved and resumed
    Mutant(
        fault=29,
        what="a saved projector is loaded with strict=False",
        file="sfkit/checkpoint.py",
        old="handle.load_state_dict(state, strict=True)",
        new="handle.load_state_dict(state, strict=False)",
        tests=("tests/test_checkpoint.py::test_fault_29_a_projector_that_does_not_fit_is_an_error",),
    ),
    Mutant(
        fault=31,
        what="the projector is left out of the state of the policy",
        file="sfkit/checkpoint.py",
        old="handle.load_state_dict(state, strict=True)",
        new='handle.load_state_dict({k: v for k, v in state.items() if k[:3] != "pro"}, strict=False)',
        tests=("tests/test_checkpoint.py::test_fault_31_32_a_resumed_run_continues_exactly",),
    ),
    Mutant(
        fault=31,
        what="the step counter is not restored",
        file=ALIGNER,
        old='self.steps = int(state_dict.pop(f"{prefix}step", self.steps))',
        new='state_dict.pop(f"{prefix}step", None)',
        tests=("tests/test_checkpoint.py::test_fault_31_a_wrapped_state_dict_round_trips",),
    ),
    Mutant(
        fault=32,
        what="the step counter is not restored from files",
        file=ALIGNER,
        old='self.steps = int(state_dict.pop(f"{prefix}step", self.steps))',
        new='state_dict.pop(f"{prefix}step", None)',
        tests=("tests/test_checkpoint.py::test_fault_31_32_a_resumed_run_continues_exactly",),
    ),
    # ------------------------------------------------------------------------------------------------- the registry
    Mutant(
        fault=40,
        what="a plugin that fails stops the others",
        file=REGISTRY,
        old="            self.broken.append(BrokenPlugin(distribution, entry_point.name, error))\n",
        new="            raise\n",
        tests=("tests/test_registry.py::test_fault_40_a_broken_plugin_stops_nobody_else",),
        ends_in=("ModuleNotFoundError",),
        says="No module named 'acme'",
    ),
    Mutant(
        fault=40,
        what="of two plugins with one name the first wins",
        file=REGISTRY,
        old="        if len(found) > 1:\n",
        new="        if False:\n",
        tests=("tests/test_registry.py::test_fault_40_a_duplicate_name_is_an_error_that_names_both_owners",),
    ),
    Mutant(
        fault=40,
        what="a misspelt hook is never called",
        file=REGISTRY,
        old="            manager.check_pending()\n",
        new="            pass\n",
        tests=("tests/test_registry.py::test_fault_40_a_misspelt_hook_is_an_error",),
        ends_in=("IndexError",),
    ),
    # ------------------------------------------------------------------------------------------------------- FSDP2
    Mutant(
        fault=31,
        what="under FSDP2 the first process writes its own part of the projector",
        file="sfkit/forcing.py",
        old="            state, first = checkpoint.gather(state), not torch.distributed.get_rank()\n",
        new="            state = {k: getattr(v, 'to_local', lambda v=v: v)() for k, v in state.items()}\n"
        "            first = not torch.distributed.get_rank()\n",
        tests=(
            "tests/test_sharded.py::test_fault_31_a_sharded_policy_saves_what_it_is_and_the_projector_whole[by-all]",
        ),
        ends_in=("CheckpointError", "AssertionError"),
    ),
    Mutant(
        fault=31,
        what="under FSDP2 a process that was given nothing writes as well",
        file="sfkit/forcing.py",
        old="state, first = checkpoint.part_of(gathered), bool(gathered)",
        new="state, first = checkpoint.part_of(gathered), True",
        tests=(
            "plugins/lerobot_policy_spatial_forcing/tests/test_sharded.py::"
            "test_fault_31_what_a_sharded_run_saves_plain_lerobot_loads_and_the_projector_is_whole[cpu]",
        ),
    ),
    Mutant(
        fault=52,
        what="FSDP2 may cast the projector",
        file="sfkit/aligner.py",
        old="                refuse_cast(self.projectors)\n",
        new="",
        tests=("tests/test_sharded.py::test_fault_52_a_projector_that_is_cast_and_unwrapping_are_refused",),
        ends_in=("KeyError", "AssertionError"),
    ),
)
