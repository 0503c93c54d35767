"""What the commands say: the only place that prints.

Results go to stdout, progress and complaints to stderr. With `--json -` stdout carries the JSON alone,
and everything else goes to stderr. Text from files and libraries is shown with its control
characters escaped: a name in a checkpoint must not be able to drive a terminal.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lhanet_export.files import staged, write_json
from lhanet_export.progress import Progress

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console
    from rich.text import Text

STDOUT = Path("-")
#: Spaces after a column.
_GAP = 2
_STYLES = {"yes": "green", "passed": "green", "no": "red", "failed": "red", "does not match": "red"}


class Show:
    """Where one command's facts go: tables for a reader, JSON for a program."""

    def __init__(self, json_target: Path | None = None) -> None:
        self.json_target = json_target

    @cached_property
    def progress(self) -> Progress:
        """For library functions that take a `Progress`: bars on a terminal, lines elsewhere."""
        console = _console(sys.stderr)
        return RichProgress(console) if console.is_interactive else LineProgress(sys.stderr)

    def line(self, text: str) -> None:
        """A sentence of its own."""
        self._console.print(_text(text), soft_wrap=not self._console.is_terminal)

    def table(self, title: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = ()) -> None:
        """Rows under a title: names and values, or with column headings as many cells as there are headings.

        Cells that are a verdict (`yes`, `no`, `passed`, `failed`) get its colour.
        """
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD if columns else None,
            show_header=bool(columns), show_edge=False, pad_edge=False,
            # The box adds a space of its own between columns.
            padding=(0, _GAP - 1 if columns else _GAP, 0, 0),
        )  # fmt: skip
        headings = columns or ("", "")
        widths = _widths([headings, *rows], self._console.width)
        for index, (heading, width) in enumerate(zip(headings, widths, strict=True)):
            table.add_column(heading, width=width, overflow="fold", style="dim" if not (columns or index) else None)
        for row in rows:
            table.add_row(*(_text(cell, _STYLES.get(cell, "")) for cell in row))
        self._console.print(_text(title, "bold"))
        self._console.print(table)
        self._console.print()

    def facts(self, facts: dict[str, Any]) -> None:
        """The command's result as JSON, if `--json` asked for it; a NaN in it is a fault of the caller (ValueError)."""
        if self.json_target is not None:
            emit_json(self.json_target, facts)

    @property
    def _console(self) -> Console:
        return _console(sys.stderr if self.json_target == STDOUT else sys.stdout)


def emit_json(target: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON, to stdout if the target is `-`, otherwise to a file that appears whole or not at all."""
    if target == STDOUT:
        sys.stdout.write(json.dumps(facts, indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
        return
    with staged(target) as (temporary,):
        write_json(temporary, facts)


def complain(text: str, kind: str = "") -> None:
    """Say on stderr what went wrong, after the program's name; wrapped on a terminal, one line elsewhere."""
    line = printable(f"lhanet-export: {kind}{text}")
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class WarningLines(logging.Handler):
    """Shows what the library warns of as `lhanet-export: warning: ...`."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            complain(record.getMessage(), kind="warning: ")


class RichProgress:
    """Steps on a terminal: a spinner or a bar with its time while it runs, one line with a check mark afterwards."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display: rich.progress.Progress | None = None
        utf8 = console.encoding.startswith("utf")
        self._spinner, self._done, self._failed = ("dots", "✓", "✗") if utf8 else ("line", "done:", "failed:")

    @contextmanager
    def step(self, text: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
        outermost = self._display is None
        display = self._display = self._display or self._new_display()
        if outermost:
            display.start()
        task = display.add_task(printable(text), total=total, unit=unit)
        started = time.perf_counter()
        mark, style = self._failed, "red"
        try:
            yield lambda amount: display.advance(task, amount)
            mark, style = self._done, "green"
        finally:
            display.remove_task(task)
            if outermost:
                display.stop()
                self._display = None
            taken = _taken(time.perf_counter() - started, total, unit)
            self._console.print(_text(mark, style), _text(text), _text(taken, "dim"))

    def _new_display(self) -> rich.progress.Progress:
        from rich import progress

        class Rate(progress.ProgressColumn):
            """`12 of 440 windows, 3.4 a second, 2 min 06 s left`, for steps that count something."""

            def render(self, task: progress.Task) -> Text:
                unit, left = task.fields["unit"], task.time_remaining
                if not unit or not task.speed or left is None:
                    return _text("")
                rate = f"{task.completed:.0f} of {task.total:.0f} {unit}, {task.speed:.1f} a second"
                return _text(f"{rate}, {format_seconds(left)} left", "dim")

        return progress.Progress(
            progress.SpinnerColumn(self._spinner),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.TimeElapsedColumn(),
            Rate(),
            console=self._console,
            transient=True,
            # Results may go to a pipe while progress is on the terminal; a redirected stdout would follow it there.
            redirect_stdout=False,
        )


class LineProgress:
    """Steps in a log: `step ... done (3.2 s)`, begun before the work so that a log shows what was under way."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._depth = 0
        self._open = False

    @contextmanager
    def step(self, text: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
        text = printable(text)
        self._write(("\n" if self._open else "") + "  " * self._depth + f"{text} ...", ends=False)
        self._depth += 1
        started = time.perf_counter()
        outcome = "failed"
        try:
            yield lambda amount: None
            outcome = "done"
        finally:
            self._depth -= 1
            prefix = " " if self._open else "  " * self._depth + f"{text}: "
            self._write(f"{prefix}{outcome} {_taken(time.perf_counter() - started, total, unit)}\n", ends=True)

    def _write(self, text: str, *, ends: bool) -> None:
        self._open = not ends
        self._stream.write(text)
        self._stream.flush()


def _taken(seconds: float, total: float | None, unit: str) -> str:
    """`(3.2 s)`, or `(41 s, 440 windows)` for a step that counts something."""
    return f"({format_seconds(seconds)}, {total:.0f} {unit})" if unit and total else f"({format_seconds(seconds)})"


def printable(text: str) -> str:
    """Text with everything but letters, signs, spaces and line ends escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def format_bytes(count: float) -> str:
    """`1,804 MB`, where MB is 10^6 bytes; small ones in kB or bytes."""
    if count < 1_000:
        return f"{count:.0f} bytes"
    if count < 999_500:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 9.95e6 else f"{count / 1e6:,.0f} MB"


def format_seconds(seconds: float) -> str:
    """`3.2 s`, `41 s`, `3 min 05 s` or `1 h 02 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _widths(rows: Sequence[Sequence[str]], total: int) -> list[int | None]:
    """Column widths at which no word is broken, or None for each if the total is too narrow for that.

    Every column gets its longest word; what is left goes to the narrower columns first, so sentences wrap.
    """
    columns = [[printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(len(word) for cell in column for word in [*cell.split(), ""]) for column in columns]
    wanted = [max(map(len, column)) for column in columns]
    spare = total - sum(widths) - _GAP * len(widths)
    if spare < 0:
        return [None] * len(widths)
    for index in sorted(range(len(widths)), key=wanted.__getitem__):
        more = min(wanted[index] - widths[index], spare)
        widths[index] += more
        spare -= more
    return list(widths)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class PlainConsole(Console):
        """Lets a closed pipe be the BrokenPipeError that it is; rich would make it exit code 1."""

        def on_broken_pipe(self) -> None:
            raise  # the error that is being handled when rich calls this

    return PlainConsole(file=stream, highlight=False, markup=False, emoji=False)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(text), style=style)
