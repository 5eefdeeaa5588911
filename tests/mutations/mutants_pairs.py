"""Mutants that tests of pairs, presets and the released loss must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

T_PAIRS = "tests/pairs/test_pairs.py"

PAIRS = (
    Mutant(
        fault=16,
        what="visual tokens are cut one place too late unless somebody says otherwise",
        file="sfkit/policies/base.py",
        old="token_shift: int = Field(\n        default=0,",
        new="token_shift: int = Field(\n        default=1,",
        tests=in_file(T_PAIRS, ["test_fault_16_a_token_shift_cuts_one_place_too_late"]),
    ),
    Mutant(
        fault=34,
        what="a single pair on a shared projector has the smallest width",
        file="sfkit/projectors/nested.py",
        old="        return (hidden,)\n",
        new="        return (max(1, int(smallest * hidden)),)\n",
        tests=in_file(T_PAIRS, ["test_fault_34_a_single_pair_on_a_shared_projector_has_every_unit"]),
    ),
)
