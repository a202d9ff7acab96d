"""The servers that benchmarks/peers.py measures: how each is had, started, subscribed to and published to.

Every one gets a free port, a directory of its own, one core, no persistence, and is ended with the block that started
it, or with this process. Debian's packages are used where they are installed; root with apt has them installed once.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import OURS
from venvs import NotInstalled, python_with

BODY = b"x" * 100
PATHS = os.defpath + os.pathsep + os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/usr/local/sbin"
"""Servers of Debian are in sbin, which is not in everyone's PATH."""
PATIENCE = 15.0
"""Seconds until a server must listen."""


@dataclass(frozen=True)
class Wire:
    """What peer_load.c sends and waits for, see there, and how hard it may press."""

    subscribe: bytes
    subscribed: bytes
    publish: bytes
    hello: bytes = b""
    hello_answer: bytes = b""
    prepare: bytes = b""
    prepared: bytes = b""
    answer: bytes = b""
    publishers: int = 4
    in_flight: int = 256
    outstanding: int = 20_000
    """Deliveries on their way at once, so that more subscribers do not mean larger buffers and a longer rest."""
    most_per_second: int = 0
    """Publishes; 0 is no limit."""

    def arguments(self) -> list[str]:
        """Those of peer_load.c that are bytes."""
        opening = (self.hello, self.hello_answer, self.subscribe, self.subscribed, self.prepare, self.prepared)
        return [part.hex() for part in (*opening, self.publish, *([self.answer] if self.answer else []))]


@dataclass(frozen=True)
class Server:
    """A running one."""

    pid: int
    port: int
    wire: Wire


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: Sequence[str | Path], port: int, directory: Path, wire: Wire) -> Iterator[Server]:
    """Start a server on the measured core, wait until it listens, and end it. Raises `NotInstalled`."""
    # Where this process is killed without a chance to clean up, the kernel ends its servers.
    setpriv = shutil.which("setpriv")
    with_parent = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    child = subprocess.Popen(
        [*with_parent, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=directory,
        preexec_fn=lambda: os.sched_setaffinity(0, OURS),
    )
    try:
        _wait_for(port, child)
        yield Server(child.pid, port, wire)
    finally:
        child.terminate()
        try:
            child.wait(3)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise NotInstalled(f"did not start (exit status {child.poll()})")


def program(name: str, *packages: str) -> str:
    """The path of a program of Debian's packages, installed if we may. Raises `NotInstalled`."""
    found = shutil.which(name, path=PATHS)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"(installing {' '.join(packages)})", file=sys.stderr)
        install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=120, env=environment)
        for package in packages:
            _stop_service(package)
        found = shutil.which(name, path=PATHS)
        if found is None:
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [f"no {name} in it"]
            raise NotInstalled(f"not installed: {said[-1]}")
    if found is None:
        raise NotInstalled(f"not installed: Debian has it as {' and '.join(packages)}")
    return found


def _stop_service(package: str) -> None:
    """Debian starts a service with its package; it was not asked for, and would take from the cores that measure."""
    service = "nginx" if package.startswith("nginx") else package
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "disable", "--now", service], capture_output=True, check=False, timeout=30)
    elif Path("/etc/init.d", service).exists():
        subprocess.run(["service", service, "stop"], capture_output=True, check=False, timeout=30)


def redis(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """RESP2."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    wire = Wire(
        subscribe=b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nt\r\n",
        subscribed=b":1\r\n",
        publish=b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nt\r\n$100\r\n" + BODY + b"\r\n",
        in_flight=512,
    )
    return serving([program("redis-server", "redis-server"), *options], port, directory, wire)


def nats(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """NATS core: text, without JetStream."""
    port = free_port()
    connect = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
    wire = Wire(
        subscribe=b"SUB t 1\r\nPING\r\n",
        subscribed=b"PONG\r\n",
        hello=connect + b"PING\r\n",
        hello_answer=b"PONG\r\n",
        publish=b"PUB t 100\r\n" + BODY + b"\r\n",
        in_flight=512,
    )
    return serving([program("nats-server", "nats-server"), "-a", "127.0.0.1", "-p", str(port)], port, directory, wire)


def mosquitto(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """MQTT 3.1.1 at QoS 0."""
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "set_tcp_nodelay true", "log_dest none"]
    # Started by root it would become another user, who may not read our directory.
    lines += ["user root"] if os.geteuid() == 0 else []
    (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
    wire = Wire(
        subscribe=b"\x82\x06\x00\x01\x00\x01t\x00",
        subscribed=b"\x90\x03\x00\x01\x00",
        hello=connect,
        hello_answer=b"\x20\x02\x00\x00",
        publish=b"\x30\x67\x00\x01t" + BODY,
        in_flight=512,
    )
    return serving([program("mosquitto", "mosquitto"), "-c", "mosquitto.conf"], port, directory, wire)


NGINX_CONF = """
load_module {module};
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location = /sub {{ nchan_subscriber websocket; nchan_channel_id t; nchan_subscriber_first_message newest; }}
        location = /pub {{ nchan_publisher websocket; nchan_channel_id t; nchan_store_messages off; }}
    }}
}}
"""


def nchan(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """Publishers POST, subscribers hold websockets; messages are not stored."""
    nginx = program("nginx", "nginx-light", "libnginx-mod-nchan")
    module = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
    if not module.exists():
        raise NotInstalled("not installed: nginx is there, Debian's libnginx-mod-nchan is not")
    port = free_port()
    (directory / "nginx.conf").write_text(NGINX_CONF.format(module=module, port=port))
    wire = Wire(
        subscribe=upgrade("/sub"),
        subscribed=b"\r\n\r\n",
        prepare=upgrade("/pub"),
        prepared=b"\r\n\r\n",
        publish=frame(BODY),
        # A message's id is the second and a number of 16 bits with a sign: with more of them subscribers get nothing.
        most_per_second=30_000,
        in_flight=128,
    )
    command = [nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    return serving(command, port, directory, wire)


SERVE_PUBSUB = """
import sys, uvicorn
from fastapi import FastAPI
from fastapi_websocket_pubsub import PubSubEndpoint
app = FastAPI()
PubSubEndpoint().register_route(app)
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical", access_log=False, ws_ping_interval=None)
"""
"""As its README shows. Pings are left out because the load would not answer them."""


def fastapi_websocket_pubsub(directory: Path) -> contextlib.AbstractContextManager[Server]:
    """JSON-RPC over websockets; it waits for the answer of one subscriber before it calls the next."""
    python = python_with("fastapi-websocket-pubsub==1.0.1", "uvicorn[standard]")
    port = free_port()
    topic, call = b'{"topics":["t"]', b'{"request":{"method":"%b","arguments":%b},"call_id":"%b"}}'
    answer = b'{"response":{"result":"None","result_type":"str","call_id":"' + b"I" * 32 + b'"}}'
    wire = Wire(
        subscribe=frame(call % (b"subscribe", topic, b"s")),
        subscribed=b'"call_id":"s"',
        hello=upgrade("/pubsub"),
        hello_answer=b"\r\n\r\n",
        publish=frame(call % (b"publish", topic + b',"data":"' + BODY + b'"', b"p")),
        answer=frame(answer),
        publishers=32,
        in_flight=32,
        outstanding=2_000,
    )
    return serving([python, "-c", SERVE_PUBSUB, str(port)], port, directory, wire)


def upgrade(path: str) -> bytes:
    """The request that opens a websocket (RFC 6455, section 4.1), without compression."""
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}", "Sec-WebSocket-Version: 13", "", ""]
    return "\r\n".join(lines).encode("ascii")


def frame(text: bytes) -> bytes:
    """One text message of a client (RFC 6455, section 5.2), with a mask of zeros: it must have one."""
    size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + text


PEERS = {
    "Redis pub/sub": redis,
    "NATS": nats,
    "mosquitto": mosquitto,
    "nchan": nchan,
    "fastapi-websocket-pubsub": fastapi_websocket_pubsub,
}
