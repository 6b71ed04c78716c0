"""What counts as private, and that no way of writing it gets through."""

import json
import shlex
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import quote

import pytest
import yaml

from gradlab.record.private import hide, is_secret, scrub, scrub_text

SECRETS = """
GH_PAT PAT PGPASS PGPASSWORD MY_PASSPHRASE AWS_AUTH NPM_AUTH DB_PASS DB_PASS_2 DB_PWD MYSQL_PWD
SSHPASS COOKIE JUPYTER_COOKIE MY_SESSION SENTRY_DSN AZURE_SAS SAS_TOKEN WANDB_API_KEY MYKEY API_KEYS
AWS_ACCESS_KEY_ID GITHUB_TOKEN HF_TOKEN x_token CREDENTIALS AWS_SECRET_ACCESS_KEY SLACK_WEBHOOK
ROOT_PASSWD GOOGLE_APPLICATION_CREDENTIALS DB_PW AWS_CREDS CONNECTION_STRING DB_CONN_STR
DOCKER_AUTH_CONFIG AUTHORIZATION AUTH_HEADER BASICAUTH OAUTH MNEMONIC SEED_PHRASE MY_PSWD
"""
ORDINARY = """
PATH PWD OLDPWD HOME USER SSH_AUTH_SOCK XDG_SESSION_ID XDG_SESSION_TYPE DBUS_SESSION_BUS_ADDRESS
DESKTOP_SESSION SESSION_MANAGER COMPASS COMPASS_HOME BYPASS PASSENGER_ROOT GIT_AUTHOR_NAME
XAUTHORITY PATTERN PATCH KEYBOARD XKB_KEYMAP TOKENIZERS_PARALLELISM MANPATH KEY_FILE
PASSWORD_STORE_DIR ATLAS SSH_PUBLIC_KEY SECRETARY
"""
ODD = 'it\'s a "very\\odd" sécret%/&'
KEY_OF_LINES = "-----BEGIN KEY-----\nabcdefgh0123456789\n-----END KEY-----\n"
WAYS = [str, str.strip, repr, json.dumps, lambda v: json.dumps(v, ensure_ascii=False)]
WAYS += [shlex.quote, quote, lambda v: "'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'"]


def test_which_names_speak_of_secrets():
    assert [name for name in SECRETS.split() if not is_secret(name)] == []
    assert [name for name in ORDINARY.split() if is_secret(name)] == []


@pytest.mark.parametrize("value", [ODD, KEY_OF_LINES, "ghp_0123456789abcdef"])
@pytest.mark.parametrize("written", WAYS)
def test_a_secret_is_found_however_it_is_written(monkeypatch, value, written):
    monkeypatch.setenv("GH_PAT", value)
    text = hide(f"before {written(value)} after")
    assert "<GH_PAT>" in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    for part in ("very", "odd", "abcdefgh", "BEGIN", "0123456789"):
        assert part not in text


def test_a_long_secret_that_yaml_would_fold_is_whole_in_what_is_dumped(monkeypatch):
    value = "s3cret " * 30 + "\n\ttab: [x]"
    monkeypatch.setenv("MY_PASSPHRASE", value)
    dumped = yaml.dump(scrub({"a": {"b": ["x" * 70 + value]}, "t": (value, 3)}))
    assert "s3cret" not in dumped
    assert dumped.count("<MY_PASSPHRASE>") == 2


def test_a_variable_that_another_thread_takes_away_meanwhile_is_no_error(monkeypatch):
    class Going(Mapping):
        there: ClassVar = {"GH_PAT": "ghp_0123456789abcdef"}

        def __getitem__(self, name):
            return self.there[name]

        def __iter__(self):
            return iter([*self.there, "GONE_TOKEN"])

        def __len__(self):
            return len(self.there) + 1

    monkeypatch.setattr("gradlab.record.private.os", SimpleNamespace(environ=Going()))
    assert hide("ghp_0123456789abcdef") == "<GH_PAT>"


def test_one_secret_inside_another(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh1")
    monkeypatch.setenv("B_TOKEN", "abcdefgh1-and-more")
    assert hide("abcdefgh1-and-more, abcdefgh1") == "<B_TOKEN>, <A_TOKEN>"


@pytest.mark.parametrize(
    "value", ["true", "finished", "optimizer", "/usr/bin", "1234567", "10000000", " " * 9]
)
def test_ordinary_values_stay_what_they_are(monkeypatch, value):
    monkeypatch.setenv("MY_TOKEN", value)
    assert scrub({value: f"a {value} b"}) == {value: f"a {value} b"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgres://me:pass@db/x.", "at postgres://me:***@db/x."),
        ("https://ghp_0123456789abcdef@github.com/a", "https://***@github.com/a"),
        ("ssh://git@github.com/a https://me@h.org", "ssh://git@github.com/a https://me@h.org"),
        ("https://h.org/?a=1&token=abc&b=2", "https://h.org/?a=1&token=***&b=2"),
        ("https://u:p@ss:w@host/a", "https://u:***@host/a"),
        ("redis://:only@host", "redis://:***@host"),
        ("http://u:***@host", "http://u:***@host"),
        ("http://u:<GH_PAT>@host", "http://u:<GH_PAT>@host"),
        ("db://u:${oc.env:PW}@host", "db://u:${oc.env:PW}@host"),
        ("db://${oc.env:U}:${oc.env:PW}@host", "db://${oc.env:U}:${oc.env:PW}@host"),
        ("http://localhost:8080/a, me@b", "http://localhost:8080/a, me@b"),
        ("ssh://git@host/a s3://b/x:y@z", "ssh://git@host/a s3://b/x:y@z"),
    ],
)
def test_a_password_in_a_url(text, shown):
    assert hide(text) == shown
    assert hide(shown) == shown


def test_the_password_of_a_url_in_the_environment_is_hidden_alone_too(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2hunter2@db/x")
    assert hide("no user me with hunter2hunter2") == "no user me with ***"


def test_scrubbing_twice_is_scrubbing_once(monkeypatch):
    monkeypatch.setenv("HOME", "/somebody/at/home")
    monkeypatch.setenv("GH_PAT", ODD)
    once = scrub_text(f"/somebody/at/home/x {ODD} http://a:b@c")
    assert once == "~/x <GH_PAT> http://a:***@c"
    assert scrub_text(once) == once
