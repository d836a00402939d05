"""Memory that is free: the machine's, within the limits of cgroups."""

import psutil
import pytest
import torch

from rlhf.runs import machine_memory
from rlhf.runs.machine_memory import cgroup_limits, free_memory, main_memory


def files(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"memory.{name}").write_text(text)


def test_limits_of_cgroups_of_both_versions_and_of_those_above(tmp_path):
    own, root = tmp_path / "own", tmp_path / "fs"
    own.write_text("4:memory:/job/step\n3:cpu:/other\n0::/slice/task\n")
    stat = "total_inactive_file 30\ninactive_file 7\nodd line with words\n"
    files(root / "memory" / "job", {"limit_in_bytes": "1000\n", "usage_in_bytes": "130\n", "stat": stat})
    files(root / "slice" / "task", {"max": "max\n", "current": "50\n"})
    files(root / "slice", {"max": "500\n", "current": "57\n", "stat": stat})
    assert list(cgroup_limits(str(own), str(root))) == [(1000, 100), (500, 50)]


def test_a_container_sees_its_limit_at_the_root(tmp_path):
    (tmp_path / "own").write_text("0::/kubepods/pod1/container\n")
    files(tmp_path / "fs", {"max": "2000\n", "current": "500\n"})
    assert list(cgroup_limits(str(tmp_path / "own"), str(tmp_path / "fs"))) == [(2000, 500)]


def test_other_systems_have_no_limits(tmp_path):
    assert list(cgroup_limits(str(tmp_path / "own"))) == []


def test_the_smallest_limit_counts(monkeypatch):
    monkeypatch.setattr(machine_memory, "cgroup_limits", lambda: [(2**62, 0), (10**6, 4 * 10**5), (10**5, 2 * 10**5)])
    assert main_memory() == (0, 10**5)
    monkeypatch.setattr(machine_memory, "cgroup_limits", list)
    free, total = main_memory()
    assert 0 < free <= total == psutil.virtual_memory().total
    assert free_memory(torch.device("cpu")) == pytest.approx(free, rel=0.5)
    assert free_memory(torch.device("meta")) == 0
