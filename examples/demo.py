"""The main job with real processes: a broadcaster on SQLite, subscribers that are called back, three ways to publish.

Run by scripts/demo. Every command is printed before it runs, so that it can be repeated by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


class Shown:
    """A process whose output is shown line by line, with its name in front."""

    def __init__(self, name: str, command: list[str], cwd: Path) -> None:
        show(command, background=True)
        self.name = name
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.child = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            print(f"    [{self.name}] {line}", end="", flush=True)
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def wait_for(self, text: str, count: int = 1) -> str:
        """The line with `text`, the `count`-th of them."""
        with self._news:
            found = self._news.wait_for(
                lambda: sum(text in line for line in self.lines) >= count or self.child.poll() is not None, 30
            )
            matching = [line for line in self.lines if text in line]
            if not found or len(matching) < count:
                raise SystemExit(f"{self.name} did not say {text!r}")
            return matching[count - 1]

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.child.terminate()
        status = self.child.wait(30)
        self._reader.join(5)
        return status


def environment() -> dict[str, str]:
    """Ours, with the commands of this virtual environment first and without settings that would change the demo."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HTTPPUBSUB_")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}", "PYTHONUNBUFFERED": "1"}


def show(command: list[str], *, background: bool = False) -> None:
    print(f"\n$ {shlex.join(command)}{' &' if background else ''}", flush=True)


def run(command: list[str], cwd: Path) -> str:
    """Run a command to its end and show what it printed."""
    show(command)
    done = subprocess.run(command, cwd=cwd, env=environment(), text=True, capture_output=True, check=False)
    print("".join(f"    {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)
    if done.returncode != 0:
        raise SystemExit(f"that ended with status {done.returncode}")
    return done.stdout


def publish_with_curl(url: str, cwd: Path) -> None:
    """Any HTTP client will do; `sign` prints the headers that prove who we are."""
    target = f"{url}/v1/notify?topic=foo/curl"
    headers = run(["httppubsubclient", "sign", target, "--data", "hello from curl"], cwd)
    (cwd / "headers.txt").write_text(headers)
    if shutil.which("curl"):
        run(["curl", "-sS", "-H", "@headers.txt", "--data-binary", "hello from curl", target], cwd)
        print()
    else:
        print("    (curl is not installed here; Python's urllib sends the same request)")
        program = (
            "import sys, urllib.request as u; "
            "h = dict(l.split(': ', 1) for l in open('headers.txt').read().splitlines()); "
            "print(u.urlopen(u.Request(sys.argv[1], b'hello from curl', h)).read().decode())"
        )
        run([sys.executable, "-c", program, target], cwd)


def main() -> None:
    """The demo, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="httppubsub-demo-") as folder:
        site = Path(folder)
        print("== 1. Set up: secrets for both sides, a main.py")
        run(["httppubsubserver", "--setup", "--directory", folder], site)
        print("\n== 2. A broadcaster on SQLite")
        broadcaster = Shown("broadcaster", ["httppubsubserver", "serve", "--port", "0"], site)
        processes = [broadcaster]
        try:
            url = broadcaster.wait_for("listening on ").removeprefix("listening on ")
            demonstrate(url, site, processes)
        finally:
            for process in reversed(processes):
                process.stop()
        status = broadcaster.child.returncode
        print(f"\n== Done: everything received, signatures verified, broadcaster stopped with status {status}")


def demonstrate(url: str, site: Path, processes: list[Shown]) -> None:
    """Subscribe twice, publish three ways, and see that every message arrived."""
    to = ["--broadcaster", url]
    print("\n== 3. Two subscribers; each listens on a port of its own and is called back")
    glob = Shown("listener foo/*", ["httppubsubclient", "listen", *to, "foo/*"], site)
    processes.append(glob)
    glob.wait_for("subscribed")
    exact = Shown("listener foo/bar", ["httppubsubclient", "listen", *to, "--exact", "foo/bar", "--json"], site)
    processes.append(exact)
    exact.wait_for("subscribed")

    print("\n== 4. Publish: by command, by library, by curl; every request and every delivery is signed")
    run(["httppubsubclient", "notify", *to, "foo/bar", "--data", "hello from the command line"], site)
    run(
        [sys.executable, str(HERE / "publish.py"), "subscriber-secrets.json", url, "foo/library", "hello from Python"],
        site,
    )
    publish_with_curl(url, site)
    for said in ("hello from the command line", "hello from Python", "hello from curl"):
        glob.wait_for(said)
    exact.wait_for("hello from the command line")
    miss_nothing(to, site, processes)


def miss_nothing(to: list[str], site: Path, processes: list[Shown]) -> None:
    """A durable subscriber is killed, a message is published, and the subscriber comes back."""
    print("\n== 5. A durable subscriber is killed; what is published meanwhile waits for it")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listen = ["httppubsubclient", "listen", *to, "orders/*", "--durable", "worker-1", "--bind", f"127.0.0.1:{port}"]
    before = Shown("worker-1", listen, site)
    processes.append(before)
    before.wait_for("subscribed")
    print("\n$ kill -9 %4")
    before.child.kill()
    before.child.wait(30)
    published = run(["httppubsubclient", "notify", *to, "orders/17", "--data", "an order that must arrive"], site)
    if "pending 1" not in published:
        raise SystemExit("the message should be pending")
    after = Shown("worker-1 again", listen, site)
    processes.append(after)
    after.wait_for("an order that must arrive")


if __name__ == "__main__":
    main()
