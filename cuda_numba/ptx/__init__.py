"""PTX instructions as functions for kernels, each defined once.

`from cuda_numba import ptx`, then `ptx.load_128(x, i)`, `ptx.ex2(v)`, … inside a kernel. Each is an
`Instruction` with its text, types and Python meaning; `instructions()` lists them.
"""

from .accumulators import *  # noqa: F403
from .arithmetic import *  # noqa: F403
from .atomic import *  # noqa: F403
from .barrier import *  # noqa: F403
from .cluster import *  # noqa: F403
from .convert import *  # noqa: F403
from .copy import *  # noqa: F403
from .fence import *  # noqa: F403
from .flag import *  # noqa: F403
from .instruction import Instruction
from .matrix import *  # noqa: F403
from .memory import *  # noqa: F403
from .tma import *  # noqa: F403
from .wgmma import *  # noqa: F403
from .words import *  # noqa: F403


def instructions():
    """Every instruction of this module, by name."""
    return {name: v for name, v in sorted(globals().items()) if isinstance(v, Instruction)}
