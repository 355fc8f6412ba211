from __future__ import annotations

from pathlib import Path

import pytest

from fleet.errors import Malformed
from fleet.settings import FleetSettings, load


def test_defaults_need_no_configuration(tmp_path: Path) -> None:
    settings = load(tmp_path, environ={}, overrides={})
    assert settings == FleetSettings(data=tmp_path)
    assert (settings.https_port, settings.broker_port, settings.offline_after) == (8443, 8883, 90.0)
    assert (settings.public_names, settings.max_body) == (("localhost",), 16 * 1024**2)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text('https_port = 1\nbroker_port = 1\ngather = "1 s"\npublic_names = ["a", "b"]\n')
    environ = {"SHOAL_FLEET_HTTPS_PORT": "2", "SHOAL_FLEET_BROKER_PORT": "2", "PATH": "/bin"}
    settings = load(tmp_path, environ=environ, overrides={"https_port": 3, "gather": None})
    assert (settings.https_port, settings.broker_port, settings.gather) == (3, 2, 1.0)
    assert settings.public_names == ("a", "b")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('offline_after = "90"', "units ms, s, min"),
        ('offline_after = "90 MiB"', "units ms, s, min"),
        ("offline_after = 90", "expected a text"),
        ('max_body = "16 s"', "units B, KB"),
        ('max_body = "0 B"', "1 KiB to 1 GiB"),
        ('transfer_rate = "fast"', "units B, KB"),
        ("https_port = 70000", "port from 1 to 65535"),
        ("https_port = true", "port from 1 to 65535"),
        ('upstream = "host:80"', "starts with http"),
        ('upstream_key_file = "/nowhere/key"', "there is no file"),
        ('log_level = "loud"', "one of debug"),
        ("public_names = []", "host names"),
        ("no_such = 1", "there is no such setting: use one of ack_lifetime"),
    ],
)
def test_a_bad_value_is_told_with_file_and_key(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(line + "\n")
    with pytest.raises(Malformed) as error:
        load(tmp_path, environ={}, overrides={})
    assert str(error.value).startswith(f"{path}: {line.split(' = ', maxsplit=1)[0]}: ")
    assert words in str(error.value)


def test_a_bad_value_is_told_with_its_variable_or_option(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="environment SHOAL_FLEET_NO_SUCH: there is no such setting"):
        load(tmp_path, environ={"SHOAL_FLEET_NO_SUCH": "1"}, overrides={})
    with pytest.raises(Malformed, match="option gather: expected a number with one of the units"):
        load(tmp_path, environ={}, overrides={"gather": "1"})


def test_a_file_that_is_not_toml_is_told(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text("= 1")
    with pytest.raises(Malformed, match=r"fleet\.toml: not valid TOML"):
        load(tmp_path, environ={}, overrides={})


def test_metadata_may_not_outlive_what_names_it(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="at least timestamp_lifetime"):
        load(tmp_path, environ={}, overrides={"snapshot_lifetime": "1 d"})


def test_one_port_for_both_servers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="two different ports"):
        load(tmp_path, environ={}, overrides={"https_port": "9000", "broker_port": "9000"})


def test_a_settings_file_that_cannot_be_read_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").mkdir()
    with pytest.raises(Malformed, match=r"fleet\.toml: cannot be read"):
        load(tmp_path, environ={}, overrides={})
