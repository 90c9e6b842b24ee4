"""Secrets are told nowhere: not in errors, logs, JSON, the store, cards or tracebacks."""

import json
import logging
import sys

import pytest

import conf.errors
from cli import app, terminal
from conf.compose import compose
from conf.errors import UserError, printable, redacted
from pipelines.store.store import Store
from tests.hostile_store import scored

SECRETS = {
    "HF_TOKEN": "hf_" + "Ab1" * 10, "WANDB_API_KEY": "0123456789abcdef" * 2, "DB_PASSWORD": "correct-horse-battery",
}  # fmt: skip
TEXT = (
    f"GET https://user:pa55word@host/x?a=1&access_token=t0ken&b=2 with {SECRETS['WANDB_API_KEY']}, "
    f"Authorization: Bearer {SECRETS['HF_TOKEN']}, {SECRETS['DB_PASSWORD']}, hf_{'q' * 30}, https://t0ken@host"
)
LEAKS = (*SECRETS.values(), "pa55word", "t0ken", "hf_qqq")


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    conf.errors._secrets.cache_clear()
    yield
    conf.errors._secrets.cache_clear()


def leaks(text: str) -> list[str]:
    return [secret for secret in LEAKS if secret in text]


def test_what_has_the_form_of_a_secret_goes_and_the_rest_stays():
    assert set(leaks(TEXT)) == set(LEAKS)
    assert leaks(redacted(TEXT)) == []
    assert redacted(TEXT).startswith("GET https://***host/x?a=1&***&b=2 with ***, Authorization: Bearer ***,")
    for plain in ("https://host/a@b?keyed=1", "me@host", "hf_small", "key=7", "results:3f2a", '{"a://b": "c@d"}'):
        assert redacted(plain) == plain


def test_errors_logs_json_and_the_store_hold_none(tmp_path, capsys):
    assert leaks(str(UserError(TEXT, where=TEXT, do=TEXT)) + json.dumps(UserError(TEXT).to_dict())) == []
    assert leaks(printable(TEXT)) == []
    with terminal.log_file(tmp_path / "log.txt"):
        logging.getLogger("mergebench").warning("%s", TEXT)
    terminal.print_json({"a": TEXT})
    terminal.show(TEXT.replace("[", ""))
    with Store(tmp_path / "store").commit("results", "a" * 32, scored(device=TEXT)):
        pass
    said = capsys.readouterr()
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "***" in written
    assert leaks(written + said.out + said.err) == []
    assert Store(tmp_path / "store").has("results", "a" * 32)


def test_a_configuration_reads_no_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("PLAIN", "word")
    assert compose(["name=${oc.env:PLAIN}"])[0][0].name == "word"
    with pytest.raises(UserError, match="HF_TOKEN may be a secret"):
        compose(["name=${oc.env:HF_TOKEN,x}"])


def test_a_traceback_holds_none(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError(TEXT)

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["mergebench", "ls"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "ValueError: GET" in said.err
    assert leaks(said.err + said.out) == []
