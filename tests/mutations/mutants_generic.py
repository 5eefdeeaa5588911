"""Mutants of the generic adapter: where it taps, which tokens it cuts, and what it takes for pictures."""

from __future__ import annotations

from mutant import Mutant, in_file

ADAPTER = "sfkit/policies/generic/adapter.py"
BLOCKS = "sfkit/policies/generic/blocks.py"
OPTIONS = "sfkit/policies/generic/options.py"
PIXELS = "sfkit/policies/generic/pixels.py"
TOKENS = "sfkit/policies/generic/tokens.py"

INSPECTING = "sfkit/inspection/inspecting.py"
SPAN = "sfkit/inspection/span.py"
STACKS = "sfkit/inspection/stacks.py"

T_INSPECTING = "tests/inspection/test_inspecting.py"
T_ADAPTER = "tests/policies/generic/test_adapter.py"
T_PIXELS = "tests/policies/generic/test_pixels.py"
T_VLMS = "tests/policies/generic/test_vlms.py"

GENERIC = (
    # --------------------------------------------------------------------------------------------------------- taps
    Mutant(
        fault=1,
        what="the generic adapter taps blocks, which the policy need not call",
        file=BLOCKS,
        old="    if not norm:\n        return TapPoint(block, path)\n",
        new="    if True:\n        return TapPoint(block, path)\n",
        tests=in_file(T_ADAPTER, ["test_fault_01_blocks_that_are_never_called_are_tapped_at_their_norm"]),
        ends_in=("TapError",),
    ),
    Mutant(
        fault=1,
        what="a block that is asked for is not what is tapped",
        file=BLOCKS,
        old="    if norm is None:\n        norm = next(",
        new="    if not norm:\n        norm = next(",
        tests=in_file(T_ADAPTER, ["test_fault_01_a_tap_that_never_fires_is_an_error"]),
    ),
    Mutant(
        fault=5,
        what="the norm after attention is taken for the one that a block begins with",
        file=BLOCKS,
        old='    "input_layernorm", "ln_1",',
        new='    "post_layernorm", "ln_1",',
        tests=in_file(T_ADAPTER, ["test_fault_05_35_depth_k_is_the_stream_after_k_blocks"]),
    ),
    Mutant(
        fault=35,
        what="the first norm of a post-norm block is taken for its input",
        file=BLOCKS,
        old='getattr(block, "norm_first", True) is False',
        new="False",
        tests=in_file(T_ADAPTER, ["test_fault_05_35_blocks_that_end_in_their_norms_are_tapped_themselves"]),
    ),
    # ------------------------------------------------------------------------------------------------------- tokens
    Mutant(
        fault=16,
        what="each visual token is taken for the one before it, where they are found by id",
        file=TOKENS,
        old="torch.where(has_tokens, order.gather(1, rank), -1)",
        new="torch.where(has_tokens, order.gather(1, rank) + 1, -1)",
        tests=(
            f"{T_ADAPTER}::test_fault_16_20_image_tokens_are_found_by_id",
            f"{T_VLMS}::test_fault_16_20_25_a_vlm_is_registered",
        ),
        ends_in=("RegistrationError", "ShapeError"),
    ),
    Mutant(
        fault=16,
        what="a span begins one token late",
        file=TOKENS,
        old="return hidden[:, start : start + span.length]",
        new="return hidden[:, start + 1 :][:, : span.length]",
        tests=in_file(T_ADAPTER, ["test_fault_16_a_span_is_where_it_says"]),
        ends_in=("RegistrationError", "RuntimeError"),
    ),
    Mutant(
        fault=16,
        what="positions that a function returns are shifted",
        file=TOKENS,
        old="    return positions.long()\n",
        new="    return positions.long() + 1\n",
        tests=in_file(T_ADAPTER, ["test_fault_16_a_function_returns_positions"]),
        ends_in=("RegistrationError", "ShapeError"),
    ),
    Mutant(
        fault=16,
        what="a span need not hold as many tokens as the grid",
        file=OPTIONS,
        old="            if held != views * rows * columns:\n",
        new="            if False:\n",
        tests=in_file(T_ADAPTER, ["test_fault_16_a_span_must_hold_the_grid"]),
    ),
    Mutant(
        fault=16,
        what="a span beyond the sequence is cut short",
        file=TOKENS,
        old="    if start < 0 or start + span.length > hidden.shape[1]:\n",
        new="    if False:\n",
        tests=in_file(T_ADAPTER, ["test_fault_16_a_span_beyond_the_sequence_is_an_error"]),
        ends_in=("RuntimeError",),
    ),
    Mutant(
        fault=16,
        what="image tokens are not counted",
        file=TOKENS,
        old="    if not bool((everything | only_present).all()):\n",
        new="    if False:\n",
        tests=in_file(T_ADAPTER, ["test_fault_16_a_text_that_is_cut_off_is_noticed"]),
    ),
    Mutant(
        fault=20,
        what="tokens are laid out column by column",
        file=TOKENS,
        old="    return FeatureMap(found.reshape(len(hidden), *options.grid, -1), mask)\n",
        new="    v, r, c = options.grid\n"
        "    return FeatureMap(found.reshape(len(hidden), v, c, r, -1).transpose(2, 3), mask)\n",
        tests=(
            f"{T_ADAPTER}::test_fault_16_20_image_tokens_are_found_by_id",
            f"{T_VLMS}::test_fault_16_20_25_a_vlm_is_registered",
        ),
        ends_in=("RegistrationError",),
    ),
    # ----------------------------------------------------------------------------------------------------- pictures
    Mutant(
        fault=24,
        what="absent cameras count as pictures",
        file=ADAPTER,
        old="self._valid(call, pictures) & present[:, :, None, None]",
        new="self._valid(call, pictures)",
        tests=in_file(T_ADAPTER, ["test_fault_24_padding_and_absent_cameras_are_masked"]),
    ),
    Mutant(
        fault=24,
        what="the box of what is no padding is not looked at",
        file=ADAPTER,
        old="            inside[:, :, top : top + height, left : left + width] = True\n",
        new="            inside[:] = True\n",
        tests=in_file(T_ADAPTER, ["test_fault_24_padding_and_absent_cameras_are_masked"]),
    ),
    Mutant(
        fault=24,
        what="the batch's own mask of pixels is not looked at",
        file=ADAPTER,
        old='expected {(b, v, h, w)}.")\n        return found != 0\n',
        new='expected {(b, v, h, w)}.")\n        return valid\n',
        tests=in_file(T_ADAPTER, ["test_fault_24_a_mask_of_pixels_may_be_in_the_batch"]),
    ),
    Mutant(
        fault=25,
        what="views of one sample are taken for samples of one view",
        file=PIXELS,
        old="        return given.reshape(-1, views, given.shape[1], h, w)\n",
        new="        return given.reshape(views, -1, given.shape[1], h, w).transpose(0, 1)\n",
        tests=(f"{T_VLMS}::test_fault_16_20_25_a_vlm_is_registered[paligemma-right]",),
        ends_in=("RegistrationError",),
    ),
    Mutant(
        fault=26,
        what="the mean is not put back on the pixels",
        file=PIXELS,
        old="    return torch.stack([channel * std + mean for",
        new="    return torch.stack([channel * std + 0 * mean for",
        tests=in_file(T_PIXELS, ["test_fault_26_every_layout_and_normalisation_is_undone"]),
    ),
    Mutant(
        fault=26,
        what="a normalisation that explains the pictures better is not looked for",
        file=PIXELS,
        old="    if guess is not None and guess != pixels and _explains_better(",
        new="    if False and _explains_better(",
        tests=in_file(
            T_PIXELS,
            [
                "test_fault_26_a_wrong_normalisation_is_noticed",
                "test_fault_26_dim_pictures_are_told_from_a_wrong_declaration",
            ],
        ),
    ),
    Mutant(
        fault=26,
        what="what is not declared is guessed",
        file=PIXELS,
        old="    if pixels is None:\n        raise ViewsError(",
        new="    if pixels is None:\n        return\n        raise ViewsError(",
        tests=in_file(T_PIXELS, ["test_fault_26_what_is_not_declared_is_not_guessed"]),
    ),
    # --------------------------------------------------------------------------------------------------- inspection
    Mutant(
        fault=1,
        what="the inspection counts taps that never fire as firing",
        file=STACKS,
        old="self.taps.append((point.module, point.path) if log.count(point.module) else None)",
        new="self.taps.append((point.module, point.path))",
        tests=in_file(T_INSPECTING, ["test_fault_01_what_never_fires_is_shown"]),
        ends_in=("KeyError", "AttributeError"),
    ),
    Mutant(
        fault=6,
        what="the inspection asks whether the sequence requires a gradient, and not whether the pictures' tokens do",
        file=INSPECTING,
        old="trained[depth] = find_trained_leaf(student) is not None",
        new="trained[depth] = state.requires_grad",
        tests=in_file(T_INSPECTING, ["test_fault_06_a_frozen_backbone_is_shown"]),
    ),
    Mutant(
        fault=16,
        what="the inspection leaves out the first of each view's tokens",
        file=SPAN,
        old="_EXTRAS = (0, 1, 2, 4, 5)",
        new="_EXTRAS = (1, 2, 4, 5)",
        tests=in_file(T_INSPECTING, ["test_fault_16_20_tokens_are_those_that_move_with_the_pictures"]),
    ),
    Mutant(
        fault=20,
        what="the inspection reads tokens column by column",
        file=SPAN,
        old="    row, column = most // columns, most % columns\n",
        new="    column, row = most // columns, most % columns\n",
        tests=in_file(T_INSPECTING, ["test_fault_16_20_tokens_are_those_that_move_with_the_pictures"]),
    ),
    Mutant(
        fault=25,
        what="the inspection takes cameras in the order of the batch, whatever that of their tokens",
        file=SPAN,
        old="    order = positions[0, :, 0].argsort().tolist()\n",
        new="    order = list(range(pictures.views))\n",
        tests=in_file(T_INSPECTING, ["test_fault_25_cameras_are_told_in_the_order_of_their_tokens"]),
    ),
)
