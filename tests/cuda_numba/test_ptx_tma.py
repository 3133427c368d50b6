"""The text of the instructions that copy in bulk: does it assemble?"""

import pytest
from ptx_boxes import RANKS
from ptx_compiled import compiled

from cuda_numba import ptx

TO_SHARED = "shared::cluster.global.mbarrier::complete_tx::bytes"
TEXTS = {
    **{f"tma_load_{r}d": f"cp.async.bulk.tensor.{r}d.{TO_SHARED} [" for r in RANKS},
    **{
        f"tma_load_{r}d_multicast": f"cp.async.bulk.tensor.{r}d.{TO_SHARED}.multicast::cluster ["
        for r in RANKS
    },
    **{
        f"tma_store_{r}d": f"cp.async.bulk.tensor.{r}d.global.shared::cta.bulk_group ["
        for r in RANKS
    },
    **{
        f"tma_reduce_add_{r}d": f"cp.reduce.async.bulk.tensor.{r}d.global.shared::cta.add"
        for r in RANKS
    },
    **{f"tma_prefetch_{r}d": f"cp.async.bulk.prefetch.tensor.{r}d.L2.global [" for r in RANKS},
    "prefetch_tensormap": "prefetch.tensormap [",
    "bulk_load": f"cp.async.bulk.{TO_SHARED} [",
    "bulk_send": "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [",
    "bulk_store": "cp.async.bulk.global.shared::cta.bulk_group [",
    "bulk_reduce_add_f32": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [",
    "bulk_reduce_add_f16": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16 [",
    "bulk_reduce_add_bf16": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [",
    "bulk_prefetch": "cp.async.bulk.prefetch.L2.global [",
    "bulk_commit": "cp.async.bulk.commit_group;",
    "bulk_wait": "cp.async.bulk.wait_group 1;",
    "bulk_wait_read": "cp.async.bulk.wait_group.read 1;",
}


@pytest.mark.parametrize("name", TEXTS)
def test_assembles(name):
    ins = getattr(ptx, name)
    literals = [1 for scalar, _ in ins.parameters if scalar == "literal"]
    assert TEXTS[name] in compiled(ins, *literals)
