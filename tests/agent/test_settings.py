from __future__ import annotations

import pytest

from agent.errors import Malformed
from agent.settings import load


def test_the_file_gives_way_to_the_environment_and_that_to_flags(tmp_path) -> None:
    (tmp_path / "agent.toml").write_text('window = "5 s"\nqueue = "1 MiB"\nbad_chunks = 7\ntcp = "127.0.0.1:1"\n')
    settings = load(tmp_path, {"SHOAL_AGENT_WINDOW": "9 s", "HOME": "x"}, {"tcp": "127.0.0.1:2", "socket": None})
    assert (settings.window, settings.queue, settings.bad_chunks) == (9.0, 1024 * 1024, 7)
    assert settings.tcp == "127.0.0.1:2"
    assert settings.socket == tmp_path / "agent.sock"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("window", "60", "units ms, s"),
        ("window", "60 MiB", "units ms, s"),
        ("window", "1 ms", "out of bounds, expected 100 ms to 1 d"),
        ("queue", "8", "units B, KB"),
        ("bad_chunks", "many", "whole number"),
        ("tcp", "0.0.0.0:8470", "expected a loopback address"),
        ("tcp", "127.0.0.1", "expected a loopback address"),
        ("socket", "/" + "x" * 120, "longer than 107 bytes"),
        ("wyndow", "60 s", "no setting of this name"),
    ],
)
def test_a_bad_setting_is_said_with_its_place(tmp_path, name, text, said) -> None:
    with pytest.raises(Malformed, match=f"SHOAL_AGENT_{name.upper()}.*{said}"):
        load(tmp_path, {f"SHOAL_AGENT_{name.upper()}": text}, {})


def test_a_settings_file_that_is_no_toml_is_named(tmp_path) -> None:
    (tmp_path / "agent.toml").write_text("window = ")
    with pytest.raises(Malformed, match=r"agent\.toml: not readable as TOML"):
        load(tmp_path, {}, {})
