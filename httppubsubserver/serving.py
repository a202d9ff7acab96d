"""`httppubsubserver serve`: one process or several behind one socket, and how they stop.

We bind the socket, run the event loop and take the signals ourselves; uvicorn only speaks HTTP. The first SIGTERM or
SIGINT drains: connections are still taken so that new notifies get their 503, running ones finish, the process exits
with 0. The second signal ends it at once.

With several workers this process serves nothing. It binds the socket, starts itself again once per worker, and starts
another one for each that dies. A socket pair leads to each worker, its lifeline: the worker writes a byte when it is
ready, we write one to let it drain, and when one side is gone, for whatever reason, the other one notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from typing import Any

import uvicorn

from httppubsubclient.admission import AdmittingServer
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.request_heads import bounded_http_protocol
from httppubsubclient.tls import Identity, ServerTls
from httppubsubserver.callback_policy import check_callback_settings
from httppubsubserver.config import ServerConfig, load_secrets
from httppubsubserver.provision_tls import https_urls
from httppubsubserver.stores import open_store

__all__ = ["serve", "serve_as_worker"]

_LOG = logging.getLogger("httppubsub.server")

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75
_LAST_ANSWERS_SECONDS = 3
"""When everything is drained: how long the last answers may take to be written, and half uploads to give up."""

_SAME_SIGNAL_SECONDS = 0.5
"""timeout(1) and supervisors signal a process and its group: that is one signal which arrives twice."""

_MAX_FAILED_STARTS = 5
"""Workers that died before they were ready, one after the other: then another one would not do better."""
_RESTART_SECONDS = 0.05
_MAX_RESTART_SECONDS = 5.0

_COLLECTIONS_BEFORE_A_FULL_ONE = 1000
"""Instead of Python's 10: about one a minute under full load."""

_READY = b"r"
_DRAIN = b"d"


def serve(config: ServerConfig, *, worker_command: Sequence[str]) -> int:
    """Listen and deliver until a signal says to stop; returns the exit status.

    `worker_command` starts this program again; a worker is told the numbers of its two sockets by flags behind it.
    Raises `ConfigurationError` before anything is printed.
    """
    _log_to_stderr(config.log_level)
    _raise_open_files_limit()
    with _bound_socket(config.host, config.port) as listening:
        announce = _Announcement(
            listening,
            "http" if config.ssl_certfile is None else "https",
            before=lambda: _warn_of_plain_http(config),
        )
        if config.workers == 1:
            return _run(_serve_app(config, listening, announce))
        asyncio.run(_check(config))
        workers = _Workers(worker_command, listening, config.workers, announce)
        return asyncio.run(workers.run())


def serve_as_worker(config: ServerConfig, *, fd: int, lifeline: int) -> int:
    """Serve on the socket that the parent bound, as long as it is there; returns the exit status."""
    _log_to_stderr(config.log_level)
    with socket.socket(fileno=fd) as listening, socket.socket(fileno=lifeline) as parent:
        parent.setblocking(False)
        return _run(_serve_app(config, listening, lambda: _tell(parent, _READY), parent=parent))


class _Announcement:
    """The first line on stdout, said once, after what is done `before`."""

    def __init__(
        self, listening: socket.socket, scheme: str = "http", *, before: Callable[[], None] = lambda: None
    ) -> None:
        self._before = before
        host, port = listening.getsockname()[:2]
        self._line: str | None = f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def __call__(self) -> None:
        if self._line is not None:
            self._before()
            print(self._line, flush=True)
            self._line = None


# -- one process ------------------------------------------------------------------------------------------------------


async def _serve_app(
    config: ServerConfig,
    listening: socket.socket,
    ready: Callable[[], None],
    *,
    parent: socket.socket | None = None,
) -> int:
    from httppubsubserver.app import create_app

    drain = asyncio.Event()
    with _signals(drain):
        app = create_app(config)
        tls = _tls(config)
        server = _server(app, config, tls)
        serving: asyncio.Task[None] | None = None
        try:
            # Entered here, so that what is wrong is raised here. Leaving it drains, while uvicorn still answers.
            async with app.state.broadcaster, _watched(tls):
                with _lifeline(parent, drain, server):
                    serving = asyncio.create_task(server.serve(sockets=[listening]), name="serve")
                    await _first(serving, server.ready.wait())
                    if not serving.done():
                        _quieten_garbage_collection()
                        ready()
                    await _first(serving, drain.wait())
        finally:
            if serving is not None:
                server.config.timeout_graceful_shutdown = _LAST_ANSWERS_SECONDS
                server.should_exit = True
                await serving
    _LOG.info("stopped")
    return 0


class _WithoutQueries(logging.Filter):
    """Takes the query out of uvicorn's lines: people put tokens there, which let nobody in and are to be in no log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
        return True


def _server(app: Any, config: ServerConfig, tls: ServerTls | None) -> AdmittingServer:
    logging.getLogger("uvicorn.access").addFilter(_WithoutQueries())
    return AdmittingServer(
        uvicorn.Config(
            app,
            http=bounded_http_protocol(),
            # It would enter the broadcaster once more and keep it open while we drain it.
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=config.log_level == "debug",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(config.shutdown_timeout_seconds) + _LAST_ANSWERS_SECONDS,
        ),
        max_connections=_room(config),
        tls=None if tls is None else lambda: tls.context,
    )


def _tls(config: ServerConfig) -> ServerTls | None:
    """Raises `ConfigurationError`."""
    identity = Identity.of(config.ssl_certfile, config.ssl_keyfile, "ssl_certfile", "ssl_keyfile")
    if identity is None:
        if config.ssl_ca_certs is not None:
            raise ConfigurationError("ssl_ca_certs asks clients for certificates, which needs TLS: set ssl_certfile")
        return None
    return ServerTls(identity, client_ca_file=config.ssl_ca_certs, ca_setting="ssl_ca_certs")


def _warn_of_plain_http(config: ServerConfig) -> None:
    """Where the secrets lead to this port by https, or lie beside a certificate, nobody would get through to us."""
    urls = https_urls(config.secrets_file)
    if config.ssl_certfile is not None or config.secrets_file is None or not urls:
        return
    beside = config.secrets_file.with_name("broadcaster.pem")
    if beside.exists() or any(parse_callback_url(url).port == config.port for url in urls):
        _LOG.warning(
            "this port speaks http, but %s says that broadcasters are reached by https: unless what is in front of it "
            "speaks TLS, set ssl_certfile (--ssl-certfile, --ssl-keyfile)%s",
            config.secrets_file, f"; {beside} lies there" if beside.exists() else "",
        )  # fmt: skip


@contextlib.asynccontextmanager
async def _watched(tls: ServerTls | None) -> AsyncIterator[None]:
    """Look after the certificate meanwhile."""
    watching = None if tls is None else asyncio.create_task(tls.keep_watch(), name="watch the certificate")
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()


def _room(config: ServerConfig) -> int:
    """Half of the open files are for those who connect to us; the other half is for those whom we call, and for files.

    Without this, whoever opens enough connections would keep every message from being delivered.
    """
    import resource

    asked = config.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or asked <= soft // 2:
        return asked
    _LOG.log(
        logging.WARNING if "max_connections" in config.model_fields_set else logging.INFO,
        "max_connections is %d, but with a limit of %d open files (ulimit -n) it can be %d; that is what it is now",
        asked, soft, soft // 2,
    )  # fmt: skip
    return soft // 2


async def _first(task: asyncio.Task[Any], other: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of them; the coroutine is cancelled if the task is done before it. Raises what it raises."""
    waiting = asyncio.ensure_future(other)
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
    finally:
        waiting.cancel()


@contextlib.contextmanager
def _signals(drain: asyncio.Event, *, at_once: Callable[[], None] = lambda: None) -> Generator[None, None, None]:
    """SIGTERM and SIGINT set `drain`; the second one calls `at_once` and ends the process."""
    loop = asyncio.get_running_loop()
    first_at: float | None = None

    def take(number: signal.Signals) -> None:
        nonlocal first_at
        if first_at is None:
            first_at = loop.time()
            _LOG.info("%s: stopping when everything under way is done; again: at once", number.name)
            drain.set()
            return
        if loop.time() < first_at + _SAME_SIGNAL_SECONDS:
            return
        _LOG.warning("%s again: stopping at once", number.name)
        at_once()
        sys.stdout.flush()
        os._exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, take, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _lifeline(
    parent: socket.socket | None, drain: asyncio.Event, server: AdmittingServer
) -> Generator[None, None, None]:
    """Drain when the parent says so. When it is gone, give the port back as well: nobody looks after us."""
    if parent is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def take() -> None:
        try:
            message = parent.recv(1)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            loop.remove_reader(parent)
            _LOG.warning("the parent process is gone: stopping")
            server.should_exit = True
        drain.set()

    loop.add_reader(parent, take)
    try:
        yield
    finally:
        loop.remove_reader(parent)


# -- several workers --------------------------------------------------------------------------------------------------


async def _check(config: ServerConfig) -> None:
    """Find out here what every worker would find out; migrate the database before several try to."""
    if config.secrets_file is not None:
        load_secrets(config.secrets_file)
    _tls(config)
    check_callback_settings(config)
    async with open_store(config.db):
        pass


class _Workers:
    """Keeps `count` workers alive until a signal, then lets all of them drain."""

    def __init__(
        self, command: Sequence[str], listening: socket.socket, count: int, announce: Callable[[], None]
    ) -> None:
        self._command = command
        self._listening = listening
        self._count = count
        self._announce = announce
        self._stop = asyncio.Event()
        self._running: dict[asyncio.subprocess.Process, socket.socket] = {}
        self._ever_ready = False
        self._failed_starts = 0
        self._status = 0

    async def run(self) -> int:
        """Until a signal: exit status 0. 1 when workers cannot be started."""
        with _signals(self._stop, at_once=self._kill):
            async with asyncio.TaskGroup() as group:
                for _ in range(self._count):
                    group.create_task(self._keep_one())
                group.create_task(self._drain_when_stopped())
        return self._status

    async def _keep_one(self) -> None:
        while not self._stop.is_set():
            was_ready, status = await self._run_one()
            if self._stop.is_set():
                return
            self._failed_starts = 0 if was_ready else self._failed_starts + 1
            if not was_ready and (not self._ever_ready or self._failed_starts >= _MAX_FAILED_STARTS):
                _LOG.critical("a worker ended with status %d before it was ready: giving up", status)
                self._status = 1
                self._stop.set()
                return
            delay = min(_RESTART_SECONDS * 2**self._failed_starts, _MAX_RESTART_SECONDS)
            _LOG.warning("a worker ended with status %d; starting another one", status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()

    async def _run_one(self) -> tuple[bool, int]:
        """One worker from its start to its end: whether it was ready, and its exit status."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                numbers = (self._listening.fileno(), theirs.fileno())
                child = await asyncio.create_subprocess_exec(
                    *self._command,
                    *("--fd", str(numbers[0]), "--lifeline", str(numbers[1])),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=numbers,
                    # Ctrl-C on a terminal goes to a whole group: it is for us alone, and we tell the workers.
                    process_group=0,
                )
            self._running[child] = ours
            try:
                if self._stop.is_set():
                    _tell(ours, _DRAIN)
                ready = await _message_of(ours) == _READY
                if ready:
                    self._ever_ready = True
                    self._announce()
                return ready, await child.wait()
            finally:
                del self._running[child]

    async def _drain_when_stopped(self) -> None:
        await self._stop.wait()
        for lifeline in self._running.values():
            _tell(lifeline, _DRAIN)

    def _kill(self) -> None:
        for child in self._running:
            with contextlib.suppress(ProcessLookupError):
                child.kill()


async def _message_of(lifeline: socket.socket) -> bytes:
    """The next byte of a worker; none when it is gone."""
    try:
        return await asyncio.get_running_loop().sock_recv(lifeline, 1)
    except OSError:
        return b""


def _tell(lifeline: socket.socket, message: bytes) -> None:
    """Say it to whoever is at the other end, if somebody is."""
    with contextlib.suppress(OSError):
        lifeline.send(message)


# -- what a process is given ------------------------------------------------------------------------------------------


def _quieten_garbage_collection() -> None:
    """Called when everything is loaded. A full collection stops every delivery for as long as it takes.

    What is there now stays, and what deliveries leave behind is no cyclic garbage: so the collector need not look at
    the former (30 ms, and more with many subscriptions), nor at all of a large fan-out's deliveries again and again.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _COLLECTIONS_BEFORE_A_FULL_ONE)


def _run(serving: Coroutine[Any, Any, int]) -> int:
    """Run it in uvloop's event loop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serving)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serving)


def _bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigurationError` that says what is wrong."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "another process listens there: stop it, or choose another --port (0 takes a free one)"
        elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            reason = "it is not an address of this machine; 0.0.0.0 stands for all of them"
        elif error.errno == errno.EACCES:
            reason = "this user may not use that port"
        else:
            reason = error.strerror or str(error)
        raise ConfigurationError(f"cannot listen on {host} port {port}: {reason}") from None


def _raise_open_files_limit() -> None:
    """Each subscriber that is being called is an open file; the usual soft limit is 1024, the hard one far above."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_to_stderr(level: str) -> None:
    """Our own log at `level`, what others log from warnings on; with debug every request, too."""
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", level=logging.WARNING
    )
    logging.getLogger("httppubsub").setLevel(level.upper())
    logging.getLogger("httppubsub.audit").setLevel(logging.INFO)
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.DEBUG)
