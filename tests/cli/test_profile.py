"""The profiles that ship, what lint finds, and what a machine is seen to be."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import detect
from cli.errors import BadInput
from cli.profile import app, load, names
from compiler.plan.lint import lint
from wire.profile import ProfileRuntime

NINE = [
    "android-arm64",
    "ios-arm64",
    "jetson-nano",
    "jetson-orin-nano",
    "raspberry-pi-3b-plus",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
    "x86-64",
]


def text(name: str) -> str:
    return files("firmware_profiles").joinpath(f"{name}.toml").read_text()


def test_all_nine_profiles_are_there_and_without_a_finding() -> None:
    assert names() == NINE
    assert [f for name in NINE for f in lint(f"{name}.toml", text(name).encode())] == []


PI = "raspberry-pi-4"


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ('cpu = "', 'cpus = "', "", "hardware.cpu: missing"),
        ('minimise = "latency"', 'minimize = "latency"', "minimize", "no program reads this key"),
        (f'name = "{PI}"', 'name = "other"', "name", "give both the same name"),
        ('name = "litert"', 'name = "onnxruntime"', "runtimes.onnxruntime", "stands twice"),
        ('figure = "detect"', 'figure = "hardware"', "detect", "no source"),
        ('figure = "limits"', 'figure = "limit"', "sources.limit", "no such figure"),
        ('status = "supported"', 'status = "compile-only"', "status", "was seen working"),
        ("seen_working = true", "", "status", "no runtime was seen working"),
        ('figure = "runtimes.litert"', 'figure = "runtimes"', "runtimes.litert.seen_working", "no confirmed source"),
        ('"asimd"', '"neon"', "hardware.features", "never neon"),
        ('machine = "aarch64"', 'machine = "arm"', "hardware.machine", "is not known"),
        ('memory = "384 MiB"', 'memory = "1 GiB"', "limits.memory", "not below the 1 GiB"),
        ('memory = "384 MiB"', 'memory = "384 MiB"\nstore = "1 MiB"', "limits.store", "below the 256 MiB"),
        ('machines = ["aarch64"]', 'machines = ["armv7l"]', "detect.machines", "would not be recognised"),
        ('version = "1.31.1"', 'version = "newest"', "runtimes.onnxruntime.version", "is no version"),
        ('python = "3.11"', 'python = "3.13"', "runtimes.tflite-runtime.version", "no wheel"),
        ('name = "litert"', 'name = "tensorrt"', "runtimes.tensorrt.name", "needs a GPU"),
        ('version = "2.3.0"', 'version = "2.3.0"\nopset = 17', "runtimes.litert.opset", "leave opset and ir out"),
        ("opset = 17", "opset = 99", "runtimes.onnxruntime.opset", "99 is not known"),
        ('version = "1.31.1"', 'version = "1.8.0"', "runtimes.onnxruntime.opset", "reads 14 at most"),
        ("ir = 8", "ir = 14", "runtimes.onnxruntime.ir", "reads 13 at most"),
        ("ir = 8", "ir = 7", "runtimes.onnxruntime.ir", "came with IR 8"),
    ],
)
def test_lint_names_the_key_and_what_to_do(old: str, new: str, key: str, message: str) -> None:
    assert old in text(PI)
    found = lint(f"{PI}.toml", text(PI).replace(old, new).encode())
    assert any(f.key == key and message in f.message for f in found), found


def test_lint_of_a_file_of_ones_own_ends_with_a_finding_and_an_exit_code(tmp_path: Path) -> None:
    mine = tmp_path / f"{PI}.toml"
    mine.write_text(text(PI))
    assert CliRunner().invoke(app, ["lint", str(mine)]).exit_code == 0
    mine.write_text(text(PI).replace('"asimd"', '"neon"'))
    done = CliRunner().invoke(app, ["lint", "--json", str(mine)])
    assert done.exit_code == 1
    assert [(f["file"], f["key"]) for f in json.loads(done.stdout)] == [(str(mine), "hardware.features")]


def test_a_profile_is_a_name_or_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text(PI).replace(PI, "mine"))
    assert load(str(mine)).name == "mine"
    with pytest.raises(BadInput, match="choose from android-arm64"):
        load("toaster")
    with pytest.raises(BadInput, match="No such file"):
        load(str(tmp_path / "none.toml"))
    mine.write_text("name = 1")
    with pytest.raises(BadInput, match=r"mine\.toml: .*profile\.name: expected str"):
        load(str(mine))


def test_compile_only_is_said_in_the_list_and_of_a_profile() -> None:
    listed = CliRunner().invoke(app, ["list"], env={"COLUMNS": "240"}).stdout
    assert "compile-only" in next(line for line in listed.splitlines() if "ios-arm64" in line)
    shown = json.loads(CliRunner().invoke(app, ["show", "jetson-nano", "--json"]).stdout)
    refused = {r["recipe"]: r["rule"] for r in shown["recipes"]}
    assert shown["status"] == "compile-only"
    assert refused["tensorrt-int8"] == "int8-on-sm53"
    assert refused["tensorrt-fp16"] == ""
    assert all("confirmed" in s for s in shown["sources"])


def make_root(folder: Path, *, flags: str, memory: str) -> Path:
    for name, value in {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
        "proc/cpuinfo": f"processor\t: 0\nFeatures\t: {flags}\nCPU part\t: 0xd08\n",
        "proc/meminfo": f"MemTotal:  {memory} kB\nMemFree:  1 kB\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value)
    return folder


def test_a_machine_is_known_by_what_its_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    here = detect.look(make_root(tmp_path, flags="fp asimd evtstrm crc32 cpuid", memory="945000"))
    assert here.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert here.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert here.jetson == "R36"
    assert detect.differences(load("raspberry-pi-4"), here) == []
    assert "it is for Raspberry Pi 5" in detect.differences(load("raspberry-pi-5"), here)[0]


def test_a_board_that_lacks_a_feature_or_memory_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    here = detect.look(make_root(tmp_path, flags="fp asimd evtstrm cpuid", memory="400000"))
    assert detect.differences(load("raspberry-pi-4"), here) == [
        "this processor lacks crc32",
        "it is for 1 GiB of memory, this has 390.6 MiB",
    ]


def probe(runtime: Any, python: str) -> detect.Probe:
    only = (ProfileRuntime(name=runtime, version="1.0"),)
    return detect.probe(replace(load("x86-64"), runtimes=only), {runtime: python})[0]


@pytest.mark.parametrize(("runtime", "package"), [("onnxruntime", "onnxruntime"), ("litert", "ai_edge_litert")])
def test_a_runtime_works_once_it_has_computed_something(runtime: str, package: str) -> None:
    pytest.importorskip(package)
    found = probe(runtime, sys.executable)
    assert (found.works, found.told.split()[0]) == (True, package.replace("_", "-"))


def test_a_runtime_that_is_not_there_is_told_from_one_that_dies(tmp_path: Path) -> None:
    missing = probe("tflite-runtime", sys.executable)
    assert (missing.works, missing.told) == (False, "no package tflite_runtime in this Python")
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -ILL $$\n")
    dying.chmod(0o700)
    assert probe("onnxruntime", str(dying)).told == "it died of SIGILL"
    assert probe("onnxruntime", str(tmp_path / "none")).works is False
    assert probe("tensorrt", sys.executable).works is None
