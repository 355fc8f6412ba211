"""`gateway.toml`: what it says, and what it says wrongly, told with its place before the fleet starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloud_stub import cloud_stub
from fleet_process import FleetProcess
from typer.testing import CliRunner

from cli.commands import app
from fleet.errors import Malformed
from fleet.gateway.config import ANY, ONLY, load
from fleet.gateway.pricing import NANOS
from fleet.settings import load as settings_of

SOUND = """
audit_text = true
audit_kept = "7 d"
[upstreams.a]
url = "http://a/v1/"
kind = "openai"
[upstreams.b]
url = "http://b/v1"
at_once = 3
[routes.large]
deadline = "5 s"
[[routes.large.targets]]
upstream = "a"
weight = 2.5
[[routes.large.targets]]
upstream = "b"
model = "theirs"
fallback = true
[prices.a]
large = { input = 1, output = 2 }
[prices.b]
"*" = { input = 0, output = 0 }
[limits.total]
money_per_month = 12.5
[limits.each]
filters = ["strict"]
[limits.groups.kitchens]
models = ["large"]
[limits.devices.kitchen-1]
tokens_per_day = 5
[filters.strict]
classifier = "guard"
[classifiers.guard]
url = "http://127.0.0.1:8470"
model = "guard"
label = "injection"
"""


def config_of(folder: Path, text: str, **settings: object) -> Any:
    (folder / "gateway.toml").write_text(text)
    return load(settings_of(folder, environ={}, overrides=settings))


def test_all_that_a_file_says_is_taken(tmp_path: Path) -> None:
    config = config_of(tmp_path, SOUND)
    assert (config.upstreams["a"].url, config.upstreams["a"].kind, config.upstreams["b"].at_once) == (
        "http://a/v1",
        "openai",
        3,
    )
    first, second = config.routes["large"].targets
    assert (first.weight, second.model, second.fallback, config.routes["large"].deadline) == (2.5, "theirs", True, 5)
    assert config.total.money_per_month == 12.5 * NANOS
    assert (config.each.filters, config.groups["kitchens"].models) == (("strict",), ("large",))
    assert (config.devices["kitchen-1"].tokens_per_day, config.audit_text, config.audit_kept) == (5, True, 7 * 86400)
    assert (config.route("large").name, config.route("other"), config.unpriced()) == ("large", None, "")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[upstreams.a]", "[upstreams.c]", "routes.large: upstream: 'a': there is none of that name: b, c"),
        ('url = "http://b/v1"', 'url = "b"', "upstreams.b: url: expected an address"),
        ('url = "http://b/v1"', "", "upstreams.b: url: has to be set"),
        ("at_once = 3", "at_onec = 3", "upstreams.b: at_onec: there is no such setting: use one of at_once"),
        ('kind = "openai"', 'kind = "azure"', "upstreams.a: kind: expected one of compatible, openai"),
        ('deadline = "5 s"', "deadline = 5", "routes.large: deadline: expected a text"),
        ("weight = 2.5", "weight = 2.5\nfallback = true", "routes.large: targets: all are fallbacks"),
        ("weight = 2.5", "weight = 0", "targets[0]: weight: expected a number"),
        ("input = 1,", 'input = "much",', 'prices.a."large": input: expected a number'),
        ("large = { input = 1, output = 2 }", "", 'money is limited, but prices.a."large" has no price'),
        ("[limits.each]", "[limits.every]", "limits.every: expected total, each, groups or devices"),
        ('filters = ["strict"]', 'filters = ["lax"]', "limits.each: filters: 'lax': there is none of that name"),
        ('models = ["large"]', 'models = ["small"]', "limits.groups.kitchens: models: 'small'"),
        ('classifier = "guard"', 'classifier = "dog"', "filters.strict: classifier: 'dog'"),
        ('classifier = "guard"', 'personal_kinds = ["name"]', "personal_kinds: 'name': choose from mail"),
        ('url = "http://127.0.0.1:8470"', "", "classifiers.guard: expected url or socket"),
        ("audit_text = true", "audit_text = 1", "audit_text: expected true or false"),
        ("[upstreams.a]", "= 1", "not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert SOUND.count(old) >= 1
    with pytest.raises(Malformed) as error:
        config_of(tmp_path, SOUND.replace(old, new, 1))
    assert str(error.value).startswith(str(tmp_path / "gateway.toml"))
    assert words in str(error.value)


def test_the_settings_make_the_simplest_route_and_do_not_stand_beside_a_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, environ={}, overrides={"upstream": "http://a/v1", "upstream_timeout": "3 s"})
    config = load(settings)
    assert (config.routes[ANY].targets[0].upstream, config.upstreams[ONLY].timeout) == (ONLY, 3)
    assert config.route("whatever") is config.routes[ANY]
    with pytest.raises(Malformed, match="the setting upstream is set too"):
        config_of(tmp_path, SOUND, upstream="http://a/v1")


def test_a_fleet_does_not_start_with_a_mistake(tmp_path: Path) -> None:
    data = tmp_path / "fleet"
    data.mkdir()
    (data / "gateway.toml").write_text("[routes.large]\n")
    with pytest.raises(AssertionError, match=r"routes\.large: targets: expected one"), FleetProcess(data):
        pass


def test_the_commands_make_limit_show_and_revoke_keys_and_tell_usage(tmp_path: Path) -> None:
    with cloud_stub() as cloud:
        data = tmp_path / "fleet"
        data.mkdir()
        (data / "gateway.toml").write_text(
            f'[upstreams.a]\nurl = "{cloud.url}"\n[routes.ok]\n[[routes.ok.targets]]\nupstream = "a"\n'
        )
        with FleetProcess(data) as fleet:

            def shoal(*words: str) -> Any:
                done = CliRunner().invoke(app, ["gateway", *words, "--data", str(data), "--json"])
                assert done.exit_code == 0, done.output
                return json.loads(done.stdout)

            key = shoal("keys", "create", "shop", "--model", "ok", "--tokens-per-day", "20000")
            assert key["limits"] == {"models": ["ok"], "tokens_per_day": 20000}
            body = {"model": "ok", "messages": [{"role": "user", "content": "Hi"}]}
            headers = {"Authorization": f"Bearer {key['token']}"}
            assert fleet.request("POST", "/v1/chat/completions", body, headers=headers)[0] == 200
            assert shoal("keys", "limit", key["id"], "--tokens-per-day", "1")["limits"] == {"tokens_per_day": 1}
            assert fleet.request("POST", "/v1/chat/completions", body, headers=headers)[0] == 429
            assert [r["requests"] for r in shoal("usage", "--by", "route", "--since", "1 h")] == [2]
            assert [r["outcome"] for r in shoal("requests", "--who", "token:shop")] == ["refused", "answered"]
            assert [t["state"] for t in shoal("routes")[0]["targets"]] == ["closed"]
            shoal("keys", "revoke", key["id"])
            assert [k["revoked"] is not None for k in shoal("keys", "list") if k["id"] == key["id"]] == [True]
            for words in (["usage"], ["requests"], ["routes"], ["keys", "list"]):
                done = CliRunner().invoke(app, ["gateway", *words, "--data", str(data)])
                assert done.exit_code == 0, done.output
            done = CliRunner().invoke(
                app, ["gateway", "keys", "create", "x", "--money-per-day", "1", "--data", str(data)]
            )
            assert done.exit_code != 0
