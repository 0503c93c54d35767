"""What commands print: numbers with units, tables, steps, JSON, and text that cannot drive a terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lhanet_export.cli import show as show_module
from lhanet_export.cli.show import (
    LineProgress,
    RichProgress,
    Show,
    complain,
    emit_json,
    format_bytes,
    format_seconds,
    printable,
)
from lhanet_export.errors import EnvironmentLacks, RefusedInput


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (724_815, "725 kB"),
        (999_600, "1.0 MB"),
        (2_596_383, "2.6 MB"),
        (9_960_000, "10 MB"),
        (1_804e6, "1,804 MB"),
    ],
)
def test_bytes_have_a_unit(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (3.21, "3.2 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")],
)
def test_seconds_have_a_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_table_fits_80_columns_and_keeps_every_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    Show().table("A title", [("name", "word " * 40), ("long", "x" * 200)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("word") == 40
    assert out.count("x") == 200


def test_a_wide_table_breaks_sentences_not_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = ("size", "volume", "relative L2", "max abs", "labels equal", "worst Dice", "NaN/Inf", "verdict")
    row = ("64x128x128", "phantom", "1.23e-03", "1e-02 + 1e-02 of the peak", "99.9123%", "0.9987", "0", "passed")
    Show().table("a comparison", [row], columns)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = out.split()
    assert all(word in words for cell in (*columns, *row) for word in cell.split())


def test_markup_and_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    Show().table("[red]title", [("[bold]name", "\x1b[31mred\x07 :smile:")])
    Show().line("[link]\x1b]0;title\x07")
    complain("\x1b[2J")
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out
    assert "[red]title" in out
    assert "[bold]name" in out
    assert r"\x1b[31mred\x07 :smile:" in out


def test_printable_keeps_letters_of_all_scripts_and_line_ends() -> None:
    assert printable("Größe 腹部\nzweite") == "Größe 腹部\nzweite"
    assert printable("\udcff\x00\u202e") == r"\udcff\x00\u202e"


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_honoured(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    monkeypatch.setattr(show_module, "_console", lambda _: Console(file=stream, force_terminal=True, width=80))
    Show().table("title", [("passed", "yes")])
    assert ("\x1b[32m" in stream.getvalue()) is not no_color


def test_json_to_stdout_stands_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(Path("-"))
    show.line("a sentence")
    with show.progress.step("work"):
        pass
    show.table("title", [("a", "b")])
    show.facts({"a": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert "a sentence" in err
    assert "work ... done" in err


def test_results_go_to_stdout_and_steps_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show()
    with show.progress.step("work"):
        show.line("a result")
    show.facts({"not": "asked for"})
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert "work" in err


def test_json_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "facts.json"
    emit_json(target, {"a": [1, 2]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        emit_json(target, {"a": float("nan")})
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": [1, 2]}
    assert [path.name for path in target.parent.iterdir()] == ["facts.json"]


def test_json_that_cannot_be_written_is_the_machines_fault() -> None:
    with pytest.raises(EnvironmentLacks):
        emit_json(Path("/dev/null/facts.json"), {})


def test_steps_in_a_log_are_one_line_each() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    with progress.step("export", total=10) as advance:
        advance(10)
        assert stream.getvalue() == "export ..."
    assert stream.getvalue() == "export ... done (0.0 s)\n"


def test_nested_and_failing_steps_in_a_log() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    with pytest.raises(RefusedInput), progress.step("deploy"):
        with progress.step("export"):
            pass
        with progress.step("build"):
            raise RefusedInput("no")
    assert stream.getvalue().splitlines() == [
        "deploy ...",
        "  export ... done (0.0 s)",
        "  build ... failed (0.0 s)",
        "deploy: failed (0.0 s)",
    ]


def test_steps_on_a_terminal_leave_a_marked_line_each() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None, markup=False, highlight=False)
    progress = RichProgress(console)
    with progress.step("export", total=2) as advance:
        advance(1)
        with progress.step("trace [of] it"):
            pass
    with pytest.raises(KeyboardInterrupt), progress.step("build"):
        raise KeyboardInterrupt
    text = stream.getvalue()
    assert "✓ export (0." in text
    assert "✓ trace [of] it (0." in text
    assert "✗ build (0." in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor must be visible again"


def test_a_complaint_is_wrapped_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "word " * 30
    complain(words)
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    complain(words)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("lhanet-export: word")
