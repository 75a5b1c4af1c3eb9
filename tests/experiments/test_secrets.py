"""No key, token or password in what is shown or kept, and no data that moves the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.redaction import printable, redacted, without_secrets
from experiments import cli
from experiments.errors import UsageError
from experiments.output import log_file, say
from experiments.parser import command_line
from tests.experiments.test_wandb_sync import offline

SECRET = "d34db33f-open-sesame"
NAMES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "OPENAI_API_KEY")


@pytest.fixture(params=NAMES)
def secret(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(request.param, SECRET)
    return SECRET


def test_secrets_of_the_environment_are_hidden(secret: str) -> None:
    assert redacted(f"login with {secret}: refused") == "login with ***: refused"
    assert secret not in without_secrets().values()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x: gone", "https://***@host/x: gone"),
        ("s3://b/x.tar?X-Amz-Signature=abc&y=1 failed", "s3://b/x.tar?*** failed"),
        ("('https://t0ken@host/a?b=c',)", "('https://***@host/a?***',)"),
        ("mail me@host, 3 of 4 ? yes: https://host/a-b_c.tar", "mail me@host, 3 of 4 ? yes: https://host/a-b_c.tar"),
    ],
)
def test_credentials_of_addresses_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_recorded_command_has_no_credentials() -> None:
    assert command_line("fit", ["--x=https://me:pass@host/a"]) == "python -m experiments fit --x=https://***@host/a"


def test_what_is_said_and_logged_has_neither_secrets_nor_control_signs(
    secret: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.output import to_terminal

    def fail() -> None:
        with log_file(tmp_path / "log.txt"):
            say(f"sample '\x1b[2J\x1b]0;title\x07' of https://u:p@h/x with {secret}")
            raise RuntimeError(f"refused: {secret}")

    to_terminal()
    with pytest.raises(RuntimeError):
        fail()
    kept = (tmp_path / "log.txt").read_text()
    assert "refused: ***" in kept
    for text in (kept, capsys.readouterr().out):
        assert "https://***@h/x with ***" in text
        assert secret not in text
        assert "\x1b" not in text
        assert "\x07" not in text


def test_an_error_on_the_terminal_has_neither(
    secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: str, words: list[str]) -> None:
        raise UsageError(f"\x1b[31mkey {secret}")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"error: {printable(chr(27))}[31mkey ***\n"


@pytest.mark.slow
def test_a_run_folder_with_its_wandb_files_holds_no_secret(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.experiments.conftest import fit_words

    offline(monkeypatch)
    for name in NAMES:
        monkeypatch.setenv(name, SECRET)
    assert cli.main(fit_words(shards, tmp_path)) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
