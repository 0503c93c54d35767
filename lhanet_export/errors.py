"""Every way in which a command can end badly, and the exit code that says which one it was.

A message says what was found, in which file or value, and what to do about it. Anything that
is not one of these classes is a fault of this toolkit and ends with exit code 1 and a traceback.
"""


class LhanetExportError(Exception):
    """Base of the errors that are meant for the reader, not for the developer."""

    exit_code = 1


class RefusedInput(LhanetExportError, ValueError):
    """The input is not what the command can work with: a file, a shape, an option. Exit code 2."""

    exit_code = 2


class GateFailed(LhanetExportError):
    """An artifact was made, but did not pass its proof; it does not get its final name. Exit code 2."""

    exit_code = 2


class EnvironmentLacks(LhanetExportError):
    """This machine lacks something: a package, a GPU, memory or disk. Exit code 3."""

    exit_code = 3


class OutOfMemory(EnvironmentLacks):
    """A GPU has no room for this much at a time; less of it may fit. Exit code 3 if nobody tries."""


class GpuFailed(EnvironmentLacks):
    """A GPU failed while it was at work, and this process cannot use it any more; another one may. Exit code 3."""
