"""Which class of work a GPU kernel does, told from its name.

    GEMM              matrix products, with what their epilogues do
    attention         two products and the softmax between them, in one kernel
    softmax/loss      softmax, cross-entropy
    reduction/norm    sums, means, norms, column sums
    element-wise      additions, activations, the optimizer
    gather/scatter    embedding, sorting by id
    copy/layout       copies, conversions, filling, concatenation
    other             none of these names

A name is what a compiler or a library has called its kernel: nobody has promised that it tells
anything. So "other" is a class, and who classifies a trace looks at how large it is. Rules are
tried in order: the name of an element-wise kernel whose function is a copy says both.
"""

import re

GEMM, ATTENTION, SOFTMAX = "GEMM", "attention", "softmax/loss"
REDUCTION, ELEMENTWISE = "reduction/norm", "element-wise"
GATHER, COPY, OTHER = "gather/scatter", "copy/layout", "other"
CLASSES = (GEMM, ATTENTION, SOFTMAX, REDUCTION, ELEMENTWISE, GATHER, COPY, OTHER)

RULES = (
    (ATTENTION, r"flash|fmha|sdpa|^attention_|dot_do_o|convert_dq"),  # two of cuDNN's backward
    (GEMM, r"gemm|gemv|nvjet|cutlass|splitk|^product|^matmul_|^sum_splits"),
    (SOFTMAX, r"softmax|nll_loss|cross_entropy|^count_targets|^scale_gradient"),
    (REDUCTION, r"layer_?norm|gammabeta|^norm_|lpnorm|reduce_kernel|^partial_sums|^sum_rows"),
    (GATHER, r"embedding|(?<!with_)index|gather|scatter|^split_by_|^order_by_|segment"),
    (GATHER, r"grad_weight|cub::|sort|krn_partial"),
    (COPY, r"memcpy|memset|copy|fillfunctor|catarray|transpose|tensor_?map"),
    (
        ELEMENTWISE,
        r"elementwise|multi_tensor_apply|^optimizer_step|^gelu_|^swiglu_|^rope|triton_poi",
    ),
    (REDUCTION, r"triton_(red|per)"),
)


def class_of(name: str) -> str:
    """The class of a kernel, or of a copy or a filling as a profiler names them."""
    for kind, pattern in RULES:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return OTHER
