"""The program's shell: quick help, exit codes, one sentence for an error, and what the console prints."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dasnet_lightning import __version__, console
from dasnet_lightning.cli import main
from dasnet_lightning.cli.main import COMMANDS
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.report import Table

HEAVY = ("torch", "lightning", "numpy", "torchvision", "albumentations", "wandb", "PIL")


def loaded_after(*arguments: str) -> str:
    """Output of a fresh interpreter that runs the program, then the heavy packages that it has loaded."""
    code = (
        "import sys; from dasnet_lightning.cli.main import main; "
        f"code = main({list(arguments)!r}); print(code, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["segment", "--help"], ["data", "--help"], ["convert", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_after(*arguments).splitlines()[-1] == "0 []"


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    names = ["demo", "train", "sweep", "segment", "data", "convert", "annotate", "export", "fit", "validate", "test"]
    assert list(COMMANDS) == names
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.help in text
    assert main.main([]) == 2
    assert capsys.readouterr().out == text


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dasnet {__version__}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("segmnt", "dasnet: 'segmnt' is not a command, did you mean 'segment'? Known: demo, train, "),
        ("xyzzy", "dasnet: 'xyzzy' is not a command, known: demo, train, "),
        ("--chekpoint", "dasnet: '--chekpoint' is not an option; start with a command: demo, "),
    ],
)
def test_unknown_words_get_an_answer(given: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([given]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("name", ["segment", "data"])
def test_every_command_has_help_and_refuses_wrong_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([name, "--help"]) == 0
    assert "--debug" in capsys.readouterr().out
    assert main.main([name, "--nonsense"]) == 2
    assert f"dasnet {name}: error:" in capsys.readouterr().err


def use_command(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | int) -> list[object]:
    """Put a command in the place of all modules that ends as asked; returns what it was called with."""
    calls: list[object] = []

    def end(*given: object) -> int:
        calls.extend(given)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module = SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--flag"), run=end, run_cli=end)
    monkeypatch.setattr(main, "import_module", lambda name: module)
    return calls


def test_an_error_is_one_sentence_and_debug_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_command(monkeypatch, DataError("a.xml: object 2: box has zero width"))
    assert main.main(["data"]) == 2
    assert capsys.readouterr().err == "dasnet: a.xml: object 2: box has zero width\n"
    for arguments in (["--debug", "data"], ["data", "--debug"], ["fit", "--debug"]):
        assert main.main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_exit_codes_follow_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    use_command(monkeypatch, 0)
    assert main.main(["data"]) == 0
    use_command(monkeypatch, 2)
    assert main.main(["data"]) == 2
    use_command(monkeypatch, KeyboardInterrupt())
    assert main.main(["data"]) == 130
    use_command(monkeypatch, ConfigError("x"))
    assert main.main(["test"]) == 2
    use_command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main.main(["data"])


@pytest.mark.parametrize("name", ["fit", "validate", "test"])
def test_lightning_s_commands_are_handed_over_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = use_command(monkeypatch, 0)
    assert main.main([name, "--config", "a.yaml", "--help"]) == 0
    assert calls == [name, ["--config", "a.yaml", "--help"]]


def test_albumentations_is_told_to_stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "0")
    main.main(["--version"])
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = "import sys; from dasnet_lightning.cli.main import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in error


def test_progress_passes_all_items_on_and_is_quiet_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress([3, 1, 2], "work")) == [3, 1, 2]
    assert list(console.progress(iter("ab"), "work", total=2)) == ["a", "b"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_long_work_in_a_pipe_prints_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    list(console.progress(range(2), "work"))
    list(console.progress(iter([5]), "work"))
    assert capsys.readouterr().err.splitlines() == ["work: 1 of 2", "work: 2 of 2", "work: 1"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(console.progress(range(3), "images")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert "images" in captured.err
    assert captured.out == ""


def test_tables_and_lists_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(Table("Title", ("a", "b"), [("x", 1000)]))
    console.print_list("Refused", [f"line {number}" for number in range(25)], rest="all in x.json")
    console.print_list("Nothing", [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["Title", "a      b", "-  -----", "x  1,000", ""]
    assert lines[5:7] == ["Refused (25)", "  line 0"]
    assert lines[25:] == ["  line 19", "  ... and 5 more, all in x.json", ""]
