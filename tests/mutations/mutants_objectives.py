"""Mutants that tests of objectives, projectors and target transforms must notice."""

from __future__ import annotations

from mutant import Mutant, in_file

STEP = "sfkit/alignment/step.py"
T_OBJECTIVES = "tests/objectives/test_objectives.py"
T_PROJECTORS = "tests/projectors/test_projectors.py"
T_TRANSFORMS = "tests/transforms/test_transforms.py"

OBJECTIVES = (
    Mutant(
        fault=21,
        what="the student's masked tokens are multiplied by 0 before any projector and objective",
        file=STEP,
        old="return torch.where(mask.unsqueeze(-1), values.float(), 0.0)",
        new="return values.float() * mask.unsqueeze(-1)",
        tests=(
            f"{T_OBJECTIVES}::test_fault_21_nan_in_masked_tokens_reaches_no_objective",
            f"{T_PROJECTORS}::test_fault_21_masked_tokens_reach_no_projector",
        ),
    ),
    Mutant(
        fault=21,
        what="masked patches take part in the Gram matrix",
        file="sfkit/objectives/relational.py",
        old="pairs = valid[:, :, None] & valid[:, None] & ",
        new="pairs = valid[:, :, None] & ",
        tests=in_file(
            T_OBJECTIVES,
            [
                "test_fault_21_masked_tokens_get_no_gradient_of_an_objective[relational within]",
                "test_fault_21_what_stands_in_masked_tokens_does_not_matter[relational all]",
            ],
        ),
    ),
    Mutant(
        fault=21,
        what="masked features are negatives too",
        file="sfkit/objectives/info_nce.py",
        old="others = ~mask.reshape(groups, 1, count)",
        new="others = torch.zeros_like(mask.reshape(groups, 1, count))",
        tests=in_file(T_OBJECTIVES, ["test_fault_21_what_stands_in_masked_tokens_does_not_matter[info-nce sample]"]),
    ),
    Mutant(
        fault=21,
        what="a convolution sees what stands in masked tokens",
        file="sfkit/projectors/conv.py",
        old="clean = torch.where(mask.unsqueeze(-1), self.norm(tokens), 0.0)",
        new="clean = self.norm(tokens)",
        tests=in_file(T_PROJECTORS, ["test_fault_21_a_convolution_sees_nothing_of_masked_neighbours"]),
    ),
    Mutant(
        fault=21,
        what="a convolution sees the bias of a norm in masked tokens",
        file="sfkit/projectors/conv.py",
        old="clean = torch.where(mask.unsqueeze(-1), self.norm(tokens), 0.0)",
        new="clean = self.norm(torch.where(mask.unsqueeze(-1), tokens, 0.0))",
        tests=in_file(T_PROJECTORS, ["test_fault_21_a_convolution_sees_nothing_of_masked_neighbours[True]"]),
    ),
    Mutant(
        fault=21,
        what="transforms do not learn which tokens the student lacks",
        file="sfkit/transforms/resample.py",
        old="found.mask & wanted",
        new="found.mask",
        tests=in_file(T_TRANSFORMS, ["test_fault_21_masked_features_reach_no_target"]),
    ),
    Mutant(
        fault=22,
        what="similarities to masked features are minus infinity, also where there are no others",
        file="sfkit/objectives/info_nce.py",
        old="torch.finfo(p.dtype).min)",
        new='float("-inf"))',
        ends_in=("RuntimeError",),
        says="returned nan values",
        tests=in_file(
            T_OBJECTIVES, ["test_fault_22_no_valid_token_is_a_loss_of_0_with_a_gradient_of_0[info-nce sample]"]
        ),
    ),
    Mutant(
        fault=22,
        what="the mean over no pair of patches is 0 / 0",
        file="sfkit/objectives/relational.py",
        old="pairs.reshape(b, -1).sum(1).clamp(min=1)",
        new="pairs.reshape(b, -1).sum(1)",
        tests=in_file(
            T_OBJECTIVES, ["test_fault_22_no_valid_token_is_a_loss_of_0_with_a_gradient_of_0[relational within]"]
        ),
    ),
    Mutant(
        fault=22,
        what="a scale error is divided by the mean square of no feature",
        file="sfkit/objectives/angular_scale.py",
        old="masked_mean(target.square().mean(-1), mask).clamp(min=1e-6)",
        new="masked_mean(target.square().mean(-1), mask)",
        tests=in_file(
            T_OBJECTIVES, ["test_fault_22_no_valid_token_is_a_loss_of_0_with_a_gradient_of_0[angular-scale]"]
        ),
    ),
    Mutant(
        fault=22,
        what="a token of length 0 is divided by its length",
        file="sfkit/objectives/base.py",
        old="return F.normalize(precise(x), dim=-1, eps=1e-6)",
        new="return precise(x) / precise(x).norm(dim=-1, keepdim=True)",
        tests=in_file(T_OBJECTIVES, ["test_fault_22_tokens_that_are_exactly_0_have_finite_gradients"]),
    ),
    Mutant(
        fault=22,
        what="a position code is added to features that do not exist",
        file="sfkit/transforms/position.py",
        old="return FeatureMap(values + code, clean.mask).sanitised()",
        new="return FeatureMap(values + code, clean.mask)",
        tests=in_file(T_TRANSFORMS, ["test_fault_22_no_valid_feature_gives_zeros"]),
    ),
    Mutant(
        fault=33,
        what="the size of the position code is that which fits one teacher",
        file="sfkit/transforms/position.py",
        old='        default="relative",\n',
        new='        default="absolute",\n',
        tests=in_file(
            T_TRANSFORMS,
            [
                "test_fault_33_the_code_has_the_same_share_whatever_the_teachers_norm",
                "test_fault_33_the_ratio_is_that_of_norms",
            ],
        ),
    ),
    Mutant(
        fault=33,
        what="the mean norm counts masked features, as 0",
        file="sfkit/transforms/position.py",
        old="count = clean.mask.flatten(1).sum(1).clamp(min=1)",
        new="count = clean.mask[0].numel()",
        tests=in_file(T_TRANSFORMS, ["test_fault_33_the_ratio_is_that_of_norms"]),
    ),
    Mutant(
        fault=34,
        what="a single pair has the smallest width",
        file="sfkit/projectors/nested.py",
        old="        return (hidden,)\n",
        new="        return (max(1, int(smallest * hidden)),)\n",
        tests=in_file(T_PROJECTORS, ["test_fault_34_a_single_pair_has_the_full_width"]),
    ),
    Mutant(
        fault=34,
        what="a single projector uses a fifth of its hidden units",
        file="sfkit/projectors/nested.py",
        old="share: float = Field(\n        default=1.0,",
        new="share: float = Field(\n        default=0.2,",
        tests=in_file(T_PROJECTORS, ["test_fault_34_by_default_every_hidden_unit_works[nested]"]),
    ),
    Mutant(
        fault=34,
        what="the default projector has a fifth of the hidden units",
        file="sfkit/projectors/mlp.py",
        old="hidden = self.options.hidden or teacher_dim",
        new="hidden = self.options.hidden or teacher_dim // 5",
        tests=in_file(T_PROJECTORS, ["test_fault_34_by_default_every_hidden_unit_works[mlp]"]),
    ),
)
