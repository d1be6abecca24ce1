"""The root command: what it collects, what it loads, and how it fails."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import pytest
import typer

from sparsecbm import __version__, cli
from sparsecbm.errors import DataError

PROGRAM = "from sparsecbm.cli import main; main()"


class FakeEntryPoint:
    """An entry point whose app is made on load."""

    def __init__(self, name: str, load: Callable[[], typer.Typer]) -> None:
        self.name = name
        self.value = f"{name}.cli:app"
        self.load = load


def command(name: str, body: Callable[[], None]) -> FakeEntryPoint:
    app = typer.Typer()
    app.command(name)(body)
    app.command("other")(lambda: None)
    return FakeEntryPoint(name, lambda: app)


def fails(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``main`` with other rooms' commands; gives exit code, stdout and stderr."""

    def run(*args: str, rooms: list[FakeEntryPoint]) -> tuple[int, str, str]:
        monkeypatch.setattr(cli, "entry_points", lambda group: rooms if group == cli.GROUP else [])
        monkeypatch.setattr(sys, "argv", ["sparsecbm", *args])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert isinstance(exit.value.code, int)
        return exit.value.code, *capsys.readouterr()

    return run


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)


def test_version_is_printed() -> None:
    assert python(PROGRAM, "--version").stdout == f"sparsecbm {__version__}\n"


def test_help_loads_neither_torch_nor_ray() -> None:
    shown = python(
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n" + PROGRAM,
        "--help",
    ).stdout  # fmt: skip
    listed, _, loaded = shown.partition("LOADED")
    assert "Usage" in listed
    assert not {"torch", "transformers", "ray", "onnxruntime", "onnx"} & set(loaded.split())


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(PROGRAM, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("room", entry_points(group=cli.GROUP), ids=lambda room: room.name)
def test_a_room_registers_its_commands(room: EntryPoint) -> None:
    if importlib.util.find_spec(room.value.partition(":")[0]) is None:
        pytest.skip(f"{room.value} is not written yet")
    assert isinstance(room.load(), typer.Typer)


def test_commands_of_all_rooms_are_listed(run: Run) -> None:
    code, out, _ = run("--help", rooms=[command("train", lambda: None), command("serve", lambda: None)])
    assert code == 0
    assert "train" in out and "serve" in out


def test_without_arguments_help_is_shown(run: Run) -> None:
    code, out, err = run(rooms=[command("train", lambda: None)])
    assert code == 2
    assert "train" in out + err


def test_a_command_runs(run: Run) -> None:
    ran: list[bool] = []
    code, _, err = run("train", rooms=[command("train", lambda: ran.append(True))])
    assert (code, err, ran) == (0, "", [True])


def test_an_error_is_one_sentence_and_exit_code_2(run: Run) -> None:
    code, out, err = run("train", rooms=[command("train", fails(DataError("row 3 has no text.")))])
    assert (code, out, err) == (2, "", "error: row 3 has no text.\n")


def test_an_error_has_a_traceback_when_debugging(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECBM_DEBUG", "1")
    code, _, err = run("train", rooms=[command("train", fails(DataError("row 3 has no text.")))])
    assert code == 2
    assert "Traceback" in err and err.endswith("error: row 3 has no text.\n")


def test_an_interrupt_exits_with_130(run: Run) -> None:
    code, _, err = run("train", rooms=[command("train", fails(KeyboardInterrupt()))])
    assert code == 130
    assert "Traceback" not in err


def test_a_command_without_its_extra_says_what_to_install(run: Run) -> None:
    error = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    code, _, err = run("train", rooms=[command("train", fails(error))])
    assert code == 2
    assert err == "error: torch is not installed; install it with: pip install 'sparsecbm[train]'\n"


def test_a_room_that_cannot_be_imported_leaves_the_others(run: Run) -> None:
    error = ModuleNotFoundError("No module named 'onnx'", name="onnx")
    rooms = [FakeEntryPoint("export", fails(error)), command("serve", lambda: None)]  # type: ignore[arg-type]
    assert run("serve", rooms=rooms)[0] == 0
    code, _, err = run("inspect", rooms=rooms)
    assert code == 2
    assert err == (
        "error: no command 'inspect' here; not loaded: "
        "export.cli: onnx is not installed; install it with: pip install 'sparsecbm[train]'\n"
    )


def test_a_missing_module_of_our_own_is_a_bug_and_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    room = command("train", fails(ModuleNotFoundError("No module named 'sparsecbm.x'", name="sparsecbm.x")))
    monkeypatch.setattr(cli, "entry_points", lambda group: [room])
    monkeypatch.setattr(sys, "argv", ["sparsecbm", "train"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ModuleNotFoundError, match=r"sparsecbm\.x"):
        cli.main()


def test_an_unknown_command_is_a_usage_error(run: Run) -> None:
    code, _, err = run("trian", rooms=[command("train", lambda: None)])
    assert code == 2
    assert "trian" in err and "train" in err
