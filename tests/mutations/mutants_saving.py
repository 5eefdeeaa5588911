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
)
