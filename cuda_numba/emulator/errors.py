"""What stops an emulated kernel, each with the thread, the block and the line."""


class EmulatorError(RuntimeError):
    """A kernel did something that no GPU defines.

    Attributes: kind ("out_of_bounds", "misaligned", "deadlock", …), thread (x, y, z), block
    (x, y, z), line (in the kernel's file), or None where there is no single one.
    """

    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        thread: tuple[int, int, int] | None = None,
        block: tuple[int, int, int] | None = None,
        line: int | None = None,
    ):
        super().__init__(message)
        self.thread, self.block, self.line = thread, block, line


class OutOfBounds(EmulatorError, IndexError):
    """An access outside the array, or outside every live allocation."""

    kind = "out_of_bounds"


class Misaligned(EmulatorError):
    """A wide access at an address that is not a multiple of its size."""

    kind = "misaligned"


class Deadlock(EmulatorError):
    """No thread can run on: the message says who waits where."""

    kind = "deadlock"


class Livelock(EmulatorError):
    """Every thread that can run spins, and nothing changes."""

    kind = "livelock"


class InvalidUse(EmulatorError):
    """An instruction used as the programming model forbids, for example a shuffle without a lane
    that its mask names."""

    kind = "invalid_use"


class UnsupportedSyntax(SyntaxError):
    """The kernel uses Python that CUDA kernels cannot use."""
