"""Lets 50 labelers submit judgments at once, kills the server twice with SIGKILL, and counts what the store holds.

    python benchmarks/label_load.py

The server is `recipes/label.py` in its own process. Each labeler opens a task, saves a draft, thinks for a second on
average (`--think 0`: not at all), submits and goes on, over HTTP. One judgment in 20 is sent twice, as by a double
click. What a killed server did not answer is sent again, as the page does. Then the store is read without the server:
each acknowledged judgment must be there, as it was sent, once. Latencies are those of answered requests. The last
output is JSON.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rlhf.labeling import people
from rlhf.labeling.import_export import export_jsonl
from rlhf.labeling.items import Item
from rlhf.labeling.progress import item_rows
from rlhf.labeling.queue import add_batch
from rlhf.labeling.store import Store

ROOT = Path(__file__).resolve().parent.parent
K = 4
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Server:
    """The server in its own process, started again after a kill."""

    def __init__(self, store: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.store, self.peak, self.downtimes = store, 0, []
        self.start()

    def start(self) -> None:
        options = {"run": self.store.parent, "store": self.store, "port": self.port}
        arguments = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        log = self.store.with_suffix(".log").open("a")
        command = [sys.executable, "recipes/label.py", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while not self.answers():
            if self.process.poll() is not None:
                sys.exit(f"the server ended:\n{self.store.with_suffix('.log').read_text()[-3000:]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Ends the process with SIGKILL."""
        self.note_memory()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_and_start(self) -> None:
        began = time.monotonic()
        self.kill()
        self.start()
        self.downtimes.append(time.monotonic() - began)

    def note_memory(self) -> None:
        """Keeps the peak of the resident memory, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        self.peak = max(self.peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


class Labeler(threading.Thread):
    """One browser without a screen: it judges until there is no task left."""

    def __init__(self, port: int, token: str, seed: int, think: float):
        super().__init__(daemon=True)
        self.rng, self.port, self.think = random.Random(seed), port, think
        self.acknowledged: dict[str, list[int]] = {}
        self.latencies: list[tuple[str, float]] = []  # kind of request, seconds
        self.retries = self.sent_twice = 0
        self.connection: http.client.HTTPConnection | None = None
        self.headers: dict[str, str] = {}
        answer, _ = self.request("login", "POST", "/login", f"token={token}", FORM)
        self.headers["Cookie"] = answer.headers["Set-Cookie"].partition(";")[0]
        _, content = self.request("login", "GET", "/session", None, {"Accept": "application/json"})
        self.headers["X-CSRF"] = json.loads(content)["csrf"]

    def request(self, kind: str, method: str, path: str, body: str | None = None, headers: dict | None = None):
        """Sends until an answer has come whole, as the page does."""
        while True:
            began = time.perf_counter()
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                self.connection.request(method, path, body, self.headers | (headers or {}))
                answer = self.connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self.connection = None
                self.retries += 1
                time.sleep(self.rng.uniform(0.1, 0.3))
                continue
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
            self.latencies.append((kind, time.perf_counter() - began))
            return answer, content

    def send(self, kind: str, method: str, path: str, content: dict) -> dict:
        _, answer = self.request(kind, method, path, json.dumps(content), {"Content-Type": "application/json"})
        return json.loads(answer)

    def run(self) -> None:
        time.sleep(self.rng.uniform(0, self.think))
        answer, _ = self.request("page", "GET", "/")
        path = answer.headers.get("Location", "/")
        while path != "/":
            self.request("page", "GET", path)
            ranks = [self.rng.randrange(K) for _ in range(K)]
            judgment = {"ranks": ranks, "notes": f"note {self.rng.random()}", "seconds": 30, "revision": 0}
            self.send("draft", "PUT", f"{path}/draft", {"draft": judgment, "active": 20})
            time.sleep(self.rng.uniform(0, 2 * self.think))
            following = self.send("submit", "POST", path, judgment)["next"]
            self.acknowledged[path.rpartition("/")[2]] = ranks
            if self.rng.random() < 0.05:
                self.sent_twice += 1
                assert not self.send("submit", "POST", path, judgment)["new"]
            path = following


def make_store(path: Path, judgments: int, labelers: int) -> list[str]:
    """Writes a store with an item for each judgment, and returns the labelers' log-in tokens."""
    text = "The baker counts six loaves and puts them on the shelf by the window. " * 8  # 560 characters
    items = [Item("comparison", f"Prompt {i}: {text}", [f"{i}.{j} {text}" for j in range(K)]) for i in range(judgments)]
    with Store(path) as store:
        add_batch(store, "load", items)
        return [people.add_labeler(store, f"labeler {i}") for i in range(labelers)]


def run_load(server: Server, tokens: list[str], judgments: int, kills: int, think: float) -> list[Labeler]:
    """Lets all labelers work to the end; the server is killed `kills` times in the middle."""
    browsers = [Labeler(server.port, token, seed, think) for seed, token in enumerate(tokens)]
    for browser in browsers:
        browser.start()
    for number in range(1, kills + 1):
        while sum(len(one.acknowledged) for one in browsers) < judgments * number / (kills + 1):
            if not any(one.is_alive() for one in browsers):
                sys.exit("the labelers ended before the server was killed")
            time.sleep(0.005)
        server.kill_and_start()
    for browser in browsers:
        browser.join()
    return browsers


def check(path: Path, acknowledged: dict[str, list[int]]) -> dict:
    """Returns what the store holds beside what was acknowledged."""
    db = sqlite3.connect(path)
    query = "select j.key, t.shown, j.ranks from judgments j join tasks t on t.key = j.key"
    stored: dict[str, list] = {}
    for key, shown, ranks in db.execute(query):
        stored.setdefault(key, []).append([json.loads(ranks)[i] for i in json.loads(shown)])
    dense = {key: [sorted(set(ranks)).index(rank) for rank in ranks] for key, ranks in acknowledged.items()}
    query = "select count(*) from (select item from judgments group by item having count(*) > 1)"
    [doubled] = db.execute(query).fetchone()
    [integrity] = db.execute("pragma integrity_check").fetchone()
    return {
        "acknowledged": len(acknowledged),
        "stored": sum(map(len, stored.values())),
        "lost": sum(key not in stored for key in dense),
        "changed": sum(key in stored and stored[key] != [ranks] for key, ranks in dense.items()),
        "doubled": doubled,
        "integrity": integrity,
    }


def percentile(values: list[float], share: float) -> float | None:
    """Returns a percentile, in ms."""
    return round(1000 * sorted(values)[int(share * (len(values) - 1))], 1) if values else None


def main(labelers: int, judgments: int, kills: int, think: float, folder: Path) -> dict:
    path = folder / "labels.db"
    tokens = make_store(path, judgments, labelers)
    server = Server(path)
    began = time.monotonic()
    try:
        browsers = run_load(server, tokens, judgments, kills, think)
        seconds = time.monotonic() - began
    finally:
        server.kill()
    acknowledged = {key: ranks for one in browsers for key, ranks in one.acknowledged.items()}
    latencies = [pair for one in browsers for pair in one.latencies]
    kinds = {kind: [s for name, s in latencies if name == kind] for kind in ("page", "draft", "submit")}
    result = {"labelers": labelers, "judgments": judgments, "kills": kills, "think_seconds": think}
    result |= check(path, acknowledged)
    result |= {
        "p95_ms": percentile([s for _, s in latencies], 0.95),
        "p95_ms_by_request": {kind: percentile(values, 0.95) for kind, values in kinds.items()},
        "median_ms": percentile([s for _, s in latencies], 0.5),
        "requests": len(latencies),
        "sent_twice": sum(one.sent_twice for one in browsers),
        "retries": sum(one.retries for one in browsers),
        "seconds": round(seconds, 1),
        "seconds_down": [round(one, 1) for one in server.downtimes],
        "memory_mb": round(server.peak),
    }
    with Store(path) as store:
        began = time.monotonic()
        result["listed"] = len(item_rows(store))
        result["list_seconds"] = round(time.monotonic() - began, 2)
        began = time.monotonic()
        result["exported"] = export_jsonl(store, folder / "export")["comparisons"]
        result["export_seconds"] = round(time.monotonic() - began, 2)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--judgments", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds from a draft to its submission")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = main(args.labelers, args.judgments, args.kills, args.think, Path(temporary))
    print(json.dumps(result))
    good = result["integrity"] == "ok" and not (result["lost"] or result["changed"] or result["doubled"])
    sys.exit(not (good and result["acknowledged"] == args.judgments))
