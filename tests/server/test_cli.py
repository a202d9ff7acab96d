"""cli.py: what is typed, what is printed, and the exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from httppubsubclient import __version__
from httppubsubserver import serving
from httppubsubserver.cli import main
from httppubsubserver.config import ServerConfig, load_secrets
from httppubsubserver.provision import set_up


class Ran:
    """What `serve` was asked to run, instead of running it."""

    def __init__(self) -> None:
        self.config: ServerConfig | None = None
        self.worker_command: Sequence[str] = ()
        self.inherited: tuple[int, int] | None = None

    def serve(self, config: ServerConfig, *, worker_command: Sequence[str]) -> int:
        self.config, self.worker_command = config, worker_command
        return 0

    def serve_as_worker(self, config: ServerConfig, *, fd: int, lifeline: int) -> int:
        self.config, self.inherited = config, (fd, lifeline)
        return 0


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Nothing listens; no settings come from outside."""
    for name in [name for name in os.environ if name.startswith("HTTPPUBSUB_")]:
        monkeypatch.delenv(name)
    ran = Ran()
    monkeypatch.setattr(serving, "serve", ran.serve)
    monkeypatch.setattr(serving, "serve_as_worker", ran.serve_as_worker)
    return ran


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


# -- setup and rotate -------------------------------------------------------------------------------------------------


def test_setup_writes_its_files_and_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--setup", "--directory", str(tmp_path), "--to-subscribers-auth", "token"]) == 0
    assert "httppubsubserver serve" in capsys.readouterr().out
    secrets = load_secrets(tmp_path / "broadcaster-secrets.json")
    assert (secrets.to_broadcasters.type, secrets.to_subscribers.type) == ("hmac", "token")


def test_the_current_folder_is_set_up_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--setup"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "broadcaster-secrets.json",
        "subscriber-secrets.json",
        "main.py",
        "storage-key",
    }


def test_setup_again_names_the_files_in_one_line_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--setup", "--directory", str(tmp_path)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert str(tmp_path / "main.py") in output.err
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize("command", [["--rotate"], ["--setup", "--rotate"]])
def test_rotate_adds_a_key(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    directory = ["--directory", str(tmp_path)]
    assert main(["--setup", *directory]) == 0
    assert main([*command, *directory, "--grace-seconds", "60"]) == 0
    assert "in any order" in capsys.readouterr().out
    assert len(load_secrets(tmp_path / "subscriber-secrets.json").to_broadcasters.keys) == 2


def test_rotating_nothing_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = ["--directory", str(tmp_path)]
    assert main(["--setup", *directory, "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none"]) == 0
    assert main(["--rotate", *directory]) == 1
    assert "nothing to rotate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "say what to do"),
        (["--directory", "x"], "say what to do"),
        (["--setup", "serve"], "'serve' is a command of its own: httppubsubserver serve [options]"),
        (["serve", "--setup"], "'--setup' is a command of its own: httppubsubserver --setup [options]"),
        (["serve", "--rotate"], "'--rotate' is a command of its own"),
        (["listen", "foo/*"], "there is no 'listen' here; httppubsubclient has it"),
        (["--setup", "--grace-seconds", "1"], "--grace-seconds belongs to --rotate"),
        (["--rotate", "--force"], "--force belongs to --setup"),
        (["--rotate", "--to-subscribers-auth", "none"], "--to-subscribers-auth belongs to --setup"),
        (["--rotate", "--grace-seconds", "-1"], "a whole number of seconds"),
        (["--rotate", "--grace-seconds", "soon"], "a whole number of seconds"),
        (["--setup", "--to-subscribers-auth", "basic"], "invalid choice"),
        (["--setup", "--broadcaster-urls", "x"], "did you mean '--broadcaster-url'?"),
        (["--setup", "--dir", "x"], "there is no '--dir'"),
        (["serve", "--max-body-byte=1"], "there is no '--max-body-byte' here; did you mean '--max-body-bytes'?"),
        (["serve", "now"], "there is no 'now'"),
        (["server"], "there is no 'server' here; did you mean 'serve'?"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    arguments: list[str], text: str, ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in usage_error(capsys, *arguments)
    assert ran.config is None


def test_a_file_that_cannot_be_used_is_told_without_its_number(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/no/such")

    monkeypatch.setattr(serving, "serve", failing)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "httppubsubserver: /no/such: No such file or directory\n"


def test_output_that_nobody_reads_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "httppubsubserver", "--setup", "--directory", str(tmp_path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert (tmp_path / "main.py").exists()


def test_setting_up_imports_no_web_framework(tmp_path: Path) -> None:
    program = (
        "import sys; from httppubsubserver.cli import main; main(sys.argv[1:]); "
        "heavy = {'fastapi', 'uvicorn', 'starlette', 'pydantic', 'aiosqlite', 'httpx'}; "
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "--setup", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


def test_the_package_is_a_command_and_knows_its_version() -> None:
    command = [sys.executable, "-m", "httppubsubserver", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"httppubsub {__version__}\n"


# -- serve ------------------------------------------------------------------------------------------------------------


def test_every_setting_is_a_flag(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = ServerConfig(
        db="sqlite:///other.db", secrets_file=Path("s"), spool_directory=tmp_path, callback_ca_file=Path("ca")
    )
    arguments = ["serve"]
    for name, value in example:
        text = ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        arguments += [f"--{name.replace('_', '-')}", text]
    assert main(arguments) == 0
    assert ran.config == example
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for name in ServerConfig.model_fields:
        assert f"--{name.replace('_', '-')} VALUE" in text
    assert "--lifeline" not in text


def test_serve_takes_the_secrets_of_the_current_folder_unless_told_otherwise(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve"]) == 0
    assert ran.config == ServerConfig(secrets_file=Path("broadcaster-secrets.json"))
    monkeypatch.setenv("HTTPPUBSUB_SECRETS_FILE", "/from/environment.json")
    assert main(["serve"]) == 0
    assert ran.config.secrets_file == Path("/from/environment.json")
    assert main(["serve", "--secrets", "/from/flag.json"]) == 0
    assert ran.config.secrets_file == Path("/from/flag.json")


CERTIFICATES = {
    "ssl_certfile": "broadcaster.pem",
    "ssl_keyfile": "broadcaster-key.pem",
    "ssl_ca_certs": "ca.pem",
    "callback_ca_file": "ca.pem",
    "callback_client_certfile": "broadcaster.pem",
    "callback_client_keyfile": "broadcaster-key.pem",
}


@pytest.mark.parametrize(
    ("arguments", "removed", "tls"),
    [
        ([], None, True),
        (["--port", "1", "--workers", "2"], None, True),
        (["--ssl-certfile", ""], None, False),
        (["--ssl-certfile", "own.pem"], None, False),
        (["--callback-ca-file", "own.pem"], None, False),
        ([], "ca.pem", False),
        ([], "broadcaster-key.pem", False),
        ([], "broadcaster-secrets.json", False),
    ],
)
def test_serve_takes_the_certificates_of_the_current_folder_all_or_none(
    arguments: list[str], removed: str | None, tls: bool, ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tmp_path, tls=True)
    if removed is not None:
        (tmp_path / removed).unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 0
    assert ran.config is not None
    taken = {name: getattr(ran.config, name) for name in CERTIFICATES}
    if tls:
        assert taken == {name: Path(file) for name, file in CERTIFICATES.items()}
    else:
        assert [path for path in taken.values() if path is not None] == [Path(text) for text in arguments[1:] if text]


def test_serve_takes_no_certificates_where_broadcasters_are_reached_by_http(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(tmp_path, tls=True)
    secrets = tmp_path / "broadcaster-secrets.json"
    secrets.write_text(secrets.read_text().replace("https:", "http:"))
    monkeypatch.chdir(tmp_path)
    assert main(["serve"]) == 0
    assert ran.config is not None
    assert ran.config.ssl_certfile is None


def test_serve_reads_the_file_it_is_given(ran: Ran, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('port = 1\nsecrets_file = "s.json"\n')
    assert main(["serve", "--config", str(file), "--workers", "3"]) == 0
    assert ran.config == ServerConfig(port=1, workers=3, secrets_file=tmp_path / "s.json")


def test_a_worker_is_the_same_command_with_two_sockets(ran: Ran) -> None:
    arguments = ["serve", "--port", "1", "--workers", "2"]
    assert main(arguments) == 0
    assert list(ran.worker_command) == [sys.executable, "-m", "httppubsubserver", *arguments]
    assert main([*ran.worker_command[3:], "--fd", "7", "--lifeline", "8"]) == 0
    assert ran.inherited == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (["--port", "http"], {}, "--port should be a valid integer"),
        ([], {"HTTPPUBSUB_PRT": "1"}, "did you mean 'HTTPPUBSUB_PORT'"),
        (["--config", "/no/such.toml"], {}, "/no/such.toml"),
    ],
)
def test_a_wrong_setting_is_one_line_and_ends_with_1(
    arguments: list[str],
    variables: dict[str, str],
    text: str,
    ran: Ran,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert text in output.err
    assert ran.config is None


def test_ctrl_c_before_anything_runs_is_no_traceback(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "serve", interrupted)
    assert main(["serve"]) == 130
