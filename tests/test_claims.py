"""The claims that the course makes visible, each with its tests and their controls.

    a  BPE splits raw bytes into sub-words drawn from a learned vocabulary
    b  pre-training pairs are one stream shifted by one; fine-tuning pairs are prompt‖target, with
       the loss only where it belongs; both objectives share backward and optimizer step
    c  the loop: ids → embedding → transformer → logits → shifted loss → backward → optimizer
    d  the operations of a step resolve into GEMM, softmax/reduction, element-wise, gather/scatter
       and copy; fused kernels cut memory traffic, raise arithmetic intensity, change gradients only
       by rounding and weight shapes not at all
    f  a parameter's gradient is a sum over batch rows, over positions and over heads
    h  max_new_tokens stops sampling and changes no parameter; T caps what attention can see; the
       KV cache changes the cost and, up to T, not the result
    i  kernels move float32, 16- and 8-bit numbers: the error is that of the format, and float16
       underflows where bfloat16 does not

A control is a deliberately broken variant that the same check must reject. The tests of a claim are
in claims/claim_<letter>.py and are collected here: `pytest tests/test_claims.py -v`.
"""

import importlib
from pathlib import Path

import pytest

CLAIMS = "abcdfhi"
MODULES = [f"claims.claim_{letter}" for letter in CLAIMS]
pytest.register_assert_rewrite(*MODULES)

for module in map(importlib.import_module, MODULES):
    for name, value in vars(module).items():
        if name.startswith("test_") or hasattr(value, "_fixture_function"):
            if name in globals():
                raise ImportError(f"{module.__name__}: the name {name} is taken by another claim")
            globals()[name] = value


@pytest.mark.parametrize("letter", CLAIMS)
def test_every_claim_is_stated_and_has_controls(letter):
    path = Path(__file__).parent / "claims" / f"claim_{letter}.py"
    text = path.read_text(encoding="utf-8")
    assert f"\n    {letter}  " in __doc__
    assert text.count("def test_") >= 3
    assert text.lower().count("control") >= 3
