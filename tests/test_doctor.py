"""`rlhf doctor`: findings with their remedies, the exit code, and no secrets."""

import runpy
import sys
from pathlib import Path

import pytest

import rlhf.setup.doctor as doctor
import rlhf.setup.finding as finding
from rlhf.setup.machine import Machine

SCRIPT = str(Path(__file__).resolve().parent.parent / "recipes" / "doctor.py")


def test_each_missing_thing_has_a_remedy_and_the_token_is_not_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    monkeypatch.setattr(doctor, "get_token", lambda: "hf_secret")
    runpy.run_path(SCRIPT, run_name="__main__")
    out = capsys.readouterr().out
    assert "hf_secret" not in out and "all that the stages need is there" in out
    assert out.count("missing: ") == out.count("-> ")


def test_a_package_that_cannot_be_imported_ends_with_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    monkeypatch.setattr(finding, "REQUIRED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert end.value.code == 1
    assert "no_such_package" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert doctor.disk(tmp_path).state == "broken"


def test_states_of_machines(tmp_path, monkeypatch):
    gpu = Machine(8, 10**11, 2, "T4", 16 * 10**9, bf16=False)
    assert doctor.precisions(gpu).state == "missing" and "T4" in doctor.devices(gpu).text
    assert doctor.devices(Machine(2, 10**10)).state == "ok"
    monkeypatch.setattr(doctor.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "HUB", "no-such-host.invalid")
    assert doctor.network().state == "missing"
    monkeypatch.setattr(doctor, "installed", lambda name: name != "trackio")
    assert {f.name: f.state for f in doctor.extras()}["track"] == "missing"
