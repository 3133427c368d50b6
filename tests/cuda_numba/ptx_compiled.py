"""Kernels that call one instruction with arguments of its types: does its PTX assemble?"""

from ptx_cases import assemble, needs_compiler

from cuda_numba.namespace import cuda, types, uint32
from cuda_numba.ptx.instruction import _NUMBA


def kernel_of(ins, literals=()):
    """A kernel with one call of `ins`, whose operands it loads and whose results it stores."""
    parameters, arguments, body = ["out"], [], []
    literals = list(literals)
    for k, (scalar, count) in enumerate(ins.parameters):
        if scalar == "literal":
            arguments.append(str(literals.pop(0)))
        elif count is None:
            parameters.append(f"a{k}")
            arguments.append(f"a{k}[0]")
        else:
            parameters.append(f"a{k}")
            arguments.append("(" + ", ".join(f"a{k}[{i}]" for i in range(count)) + ",)")
    call = f"ins({', '.join(arguments)})"
    scalar, count = ins.result
    if scalar == "void":
        body.append(call)
    elif count is None:
        body.append(f"out[0] = {'uint32' if scalar == 'pred' else ''}({call})")
    else:
        body += [f"r = {call}", f"for i in range({count}):", "    out[i] = r[i]"]
    source = f"def kernel({', '.join(parameters)}):\n    " + "\n    ".join(body)
    names = {"ins": ins, "uint32": uint32}
    exec(source, names)
    return names["kernel"]


def pointers_of(ins):
    """The types of that kernel's parameters."""
    out = "u32" if ins.result[0] in ("void", "pred") else ins.result[0]
    kinds = [out, *(scalar for scalar, _ in ins.parameters if scalar != "literal")]
    return tuple(types.CPointer(getattr(types, _NUMBA[kind])) for kind in kinds)


def compiled(ins, *literals, cc=None):
    """PTX of a kernel with one call of `ins` for its lowest capability, which must assemble."""
    needs_compiler()
    kernel = kernel_of(ins, literals)
    cc = cc or ins.cc
    ptx, _ = cuda.compile(
        kernel, pointers_of(ins), cc=cc, device=False, abi="numba", launch_bounds=(128, 1)
    )
    report = assemble(ptx, cc)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, report
    return ptx
