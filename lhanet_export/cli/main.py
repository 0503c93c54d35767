"""The command line: which commands there are, and what an error becomes outside.

A command's module is imported when the command is called, so `--help` waits for no library.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from lhanet_export import __version__
from lhanet_export.cli.show import WarningLines, complain
from lhanet_export.errors import LhanetExportError

#: Command name: where it is, and its line in the list of commands. In the order in which they are used.
COMMANDS = {
    "deploy": ("lhanet_export.cli.deploy:deploy", "All of the way: a checkpoint becomes a proven engine."),
    "onnx": ("lhanet_export.cli.onnx:onnx", "Export a checkpoint to an ONNX file, FP32 or FP16."),
    "trt": ("lhanet_export.cli.trt:trt", "Build an engine and its manifest from an ONNX file."),
    "verify": ("lhanet_export.cli.verify:verify", "Hold an ONNX file or an engine against its checkpoint."),
    "ranges": ("lhanet_export.cli.ranges:ranges", "List the layers nearest to FP16's ends, measured on scans."),
    "search": ("lhanet_export.cli.search:search", "Find what has to stay FP32 where FP16 does not pass."),
    "calibrate": ("lhanet_export.cli.calibrate:calibrate", "Make the INT8 form of an ONNX file, from scans."),
    "predict": ("lhanet_export.cli.predict:predict", "Segment a CT scan, or a folder of them."),
    "package": ("lhanet_export.cli.package:package", "Put a model into a Triton model repository."),
    "bench": ("lhanet_export.cli.bench:bench", "Time, memory and error beside every fair baseline."),
    "inspect": ("lhanet_export.cli.inspect_:inspect", "Say what is in a checkpoint, ONNX file, engine or manifest."),
    "work": ("lhanet_export.cli.work:work", "Count an ONNX file's multiply-adds and bytes, part by part."),
    "fit": ("lhanet_export.cli.fit:fit", "Find the largest patches that fit on a card, by building."),
    "doctor": ("lhanet_export.cli.doctor:doctor", "Say what this machine can do, and what is missing."),
}

OUR_BUG, REFUSED, LACKING = 1, 2, 3
#: What a full disk, a spent quota, a read-only or failing one give; the machine is at fault, not the input.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
#: How torch, ONNX Runtime and C++ libraries word it when memory runs out; their exceptions have no class of their own.
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "failed to allocate", "out of memory", "bad_alloc")


class LazyGroup(click.Group):
    """Knows its commands by name and help line, and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command '{args[0]}'; commands: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lhanet-export")
def commands() -> None:
    """From an LHA-Net checkpoint to a TensorRT engine that is right, small and fast, with proof.

    Begin with: lhanet-export deploy CHECKPOINT -o DIR

    Exit codes: 0 done; 1 a fault of this program; 2 refused input or failed proof; 3 the machine
    lacks something (a package, a GPU, memory, disk).
    """


def main() -> NoReturn:
    """The console script: run the command line of this process and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # File names need not be valid text; they are shown escaped where the terminal cannot show them.
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # An ignored signal (nohup) stays ignored.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    logging.getLogger("lhanet_export").addHandler(WarningLines())
    code = run(sys.argv[1:])
    if code == 128 + signal.SIGPIPE:
        # What is still buffered cannot be written; without this the interpreter would complain while it leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; whatever went wrong has been said on stderr."""
    try:
        # Not `commands.main`, which would make a closed pipe exit code 1.
        with commands.make_context("lhanet-export", list(arguments)) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else OUR_BUG
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        return REFUSED
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted; nothing half-written is left behind")
        return 128 + signal.SIGINT
    except LhanetExportError as error:
        complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _unforeseen(error)
    return 0


def _unforeseen(error: Exception) -> int:
    """Tell a machine at its limits from a fault of ours."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        complain(f"the disk failed: {error}")
        return LACKING
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY_WORDS):
        complain(
            f"out of memory: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Close other programs, take smaller sizes, or use a machine with more; what there is: lhanet-export doctor"
        )
        return LACKING
    traceback.print_exc()
    complain(
        f"this is a fault of lhanet-export {__version__} (Python {platform.python_version()}, {sys.platform}), "
        "not of what you gave it; please report it with the lines above"
    )
    return OUR_BUG


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that temporary files go and child processes end on the way out.
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
