"""mosquitto as a child process: its settings, its start, and starting it again when it dies.

broker = Broker(program, folder, address, server_pair, client_pair, authorities, connections=10_000)
broker.restrict(access_rules(denied), revocation_lists)    # before the start, and at any time later
await broker.start()        # returns once a real mutual-TLS connection got through
broker.reload()             # certificates, authorities, revocation and access lists are read again when it returns
await broker.stop()

Why each setting is as it is stands beside it in `configuration`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import ssl
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import psutil

from fleet.errors import Unanswered, Unavailable
from fleet.mqtt.link import tls_context
from fleet.store.files import private_folder, write
from fleet.trust.ca import KeyPair
from fleet.trust.shippable import MAX_PACKET
from wire.chunks import AVERAGE

CONFIG = "mosquitto.conf"
ACCESS, REVOKED = "acl", "revoked.pem"
READY_WITHIN = 10.0
"""Seconds a broker may take to accept its first connection."""
STOP_WITHIN = 5.0
ANSWER_WITHIN = 2.0
"""Seconds that the broker, on this machine, may take to answer."""
READ_WITHIN = 5.0
"""Seconds that it may take to read its files again: an access list takes the longer the more are shut out."""
DISCONNECT = b"\xe0\x00"
_BACK_OFF = (0.2, 1.0, 2.0, 5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker listens, and where the fleet itself finds it."""

    host: str
    port: int

    @property
    def local(self) -> str:
        """The address to connect to from this machine."""
        return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104


class Broker:
    """A supervised mosquitto."""

    def __init__(
        self,
        program: str,
        folder: Path,
        address: BrokerAddress,
        server: KeyPair,
        client: KeyPair,
        authorities: Path,
        connections: int = 10_000,
    ) -> None:
        self.address = address
        self._client, self._authorities = client, authorities
        self._program = find_program(program)
        self._folder = private_folder(folder).resolve()
        self._config = self._folder / CONFIG
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self._reload_wanted = self._unanswered = False
        self._reloading = threading.Lock()
        self.state = "stopped"
        write(self._config, configuration(self._folder, address, server, authorities, connections).encode())

    @property
    def pid(self) -> int | None:
        """Process id, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def unread(self) -> bool:
        """Whether it was told to read its files again, and did not say that it has."""
        return self._reload_wanted

    async def start(self) -> None:
        """Start it and keep it running. Raises `Unavailable` with its own words when it does not come up."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name="broker")

    def restrict(self, rules: str, revoked: bytes) -> None:
        """Put another access list and other revocation lists (PEM, one of each authority) in force, as `reload`."""
        write(self._folder / ACCESS, rules.encode())
        write(self._folder / REVOKED, revoked)
        self.reload()

    def reload(self) -> None:
        """Have access list, revocation lists, certificates and authorities read again. Any thread that may wait for it.

        When it returns, new connections are judged by the new files and live ones by the new access list; a broker that
        is starting reads them before it runs. One that was accepted before, and has not shown its certificate yet, is
        still judged by the old ones. Raises `Unanswered`: call it again.
        """
        with self._reloading:
            self._reload_wanted = True
            if self.state == "running":
                self._reload_now()

    def end_connections(self) -> None:
        """End every live connection, by a restart: whose certificate is still believed comes back. From any thread.

        A live connection goes on with a certificate that no new one would be let in with.
        """
        if self.pid is not None:
            _log.warning("broker: every connection is ended")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    async def stop(self) -> None:
        """End it: SIGTERM, so that it saves its retained messages, then SIGKILL."""
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end()
        self.state = "stopped"

    def _reload_now(self) -> None:
        """Only of a process that is ready: one that is still starting could die of the signal.

        And never two at once: mosquitto forgets a signal that comes while it reads for the one before.
        """
        pid = self.pid
        if pid is None:  # it ended this moment: the next one reads the new files
            return
        if self._unanswered:
            self._wait_for_two_turns(pid)
        self._unanswered = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)
        self._wait_for_two_turns(pid)
        self._reload_wanted = self._unanswered = False

    def _wait_for_two_turns(self, pid: int) -> None:
        """Connect, speak, and wait for the end of the connection. Raises `Unanswered`.

        mosquitto heeds a signal at the end of a turn of its loop. The turn that accepts a connection judges it, and all
        others that come meanwhile, by the files of before; what is said after the handshake is read in a later turn.
        """
        try:
            if not self._hears_out():
                self._hears_out()  # it was refused in the turn that accepted it, as by a full broker: this comes later
        except OSError as e:
            words = f"broker: pid {pid} was told to read its files again and does not answer"
            raise Unanswered(f"{words} ({e}): if that goes on, end this process: it is started again") from e

    def _hears_out(self) -> bool:
        """Whether a connection of ours got through its handshake. Raises `OSError` when nothing is heard of it."""
        address = (self.address.local, self.address.port)
        context = tls_context(self._client, self._authorities)
        with socket.create_connection(address, timeout=READ_WITHIN) as raw:
            try:
                with context.wrap_socket(raw, server_hostname=self.address.local) as connection:
                    connection.sendall(DISCONNECT)
                    while connection.recv(1024):
                        pass
            except (ssl.SSLError, ConnectionError):
                return False
        return True

    async def _launch(self) -> None:
        try:
            await self._attempt()
        except Unavailable:
            if not self._forgot():
                raise
            await self._attempt()

    def _forgot(self) -> bool:
        """Put a memory that mosquitto cannot read aside: what it held, fleet and devices publish again."""
        memory = self._folder / "mosquitto.db"
        if not (memory.exists() and any("open database" in line for line in self._last_lines)):
            return False
        memory.replace(memory.with_suffix(".unreadable"))
        self._last_lines.clear()
        _log.warning("broker: %s cannot be read: put aside, started without it", memory)
        return True

    async def _attempt(self) -> None:
        self.state = "starting"
        self._reload_wanted = self._unanswered = False
        self._tls = tls_context(self._client, self._authorities)
        command = (
            sys.executable,
            "-P",
            "-m",
            "fleet.mqtt.child",
            str(os.getpid()),
            self._program,
            "-c",
            str(self._config),
        )
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the fleet, which then ends the broker in its turn
        )
        self._reader = asyncio.create_task(self._read_log(self._process), name="broker log")
        try:
            await asyncio.wait_for(self._until_ready(self._process), READY_WITHIN)
            await asyncio.to_thread(self._catch_up)
        except Unanswered:
            await self._end()
            raise
        except (TimeoutError, Unavailable) as e:
            await self._end()
            words = "; ".join(dict.fromkeys(self._last_lines)) or "it said nothing"
            raise Unavailable(
                f"broker: mosquitto did not come up on {self.address.host}:{self.address.port}: {words}: "
                "if the port is taken, free it or choose another one with --broker ADDRESS:PORT"
            ) from e
        _log.info("broker runs on %s:%d, pid %d", self.address.host, self.address.port, self._process.pid)

    def _catch_up(self) -> None:
        """It runs, once it has read again what changed while it was starting."""
        with self._reloading:
            if self._reload_wanted:
                self._reload_now()
            self.state = "running"

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        """A connection with our certificate gets through, and the process that answers is still ours."""
        while not await self._answers():
            if process.returncode is not None:
                raise Unavailable(f"mosquitto ended with code {process.returncode}")
            await asyncio.sleep(0.02)
        if process.returncode is not None:
            raise Unavailable("another program answers on the port")

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.address.local, self.address.port, ssl=self._tls)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def _supervise(self) -> None:
        failures = 0
        while True:
            assert self._process is not None
            code = await self._process.wait()
            delay = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
            self.state = "restarting"
            _log.error("broker ended with code %s: starting it again in %.1f s", code, delay)
            await asyncio.sleep(delay)
            try:
                await self._launch()
                failures = 0
            except (Unavailable, OSError) as e:
                failures += 1
                _log.error("%s", e)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="replace").strip()
            self._last_lines.append(text)
            _log.debug("mosquitto: %s", text)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_WITHIN)
            except TimeoutError:
                process.kill()
        await process.wait()
        await self._reader


def find_program(name: str) -> str:
    """The path of mosquitto; Debian keeps it where only root's search path looks. Raises `Unavailable`."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise Unavailable(
            f"broker: there is no {name!r} on this machine: install it with `sudo apt install mosquitto` "
            "(Debian, Ubuntu, Raspberry Pi OS), `sudo dnf install mosquitto` (Fedora) or `brew install mosquitto` "
            "(macOS), or name its path with the setting mosquitto"
        )
    return found


def configuration(folder: Path, address: BrokerAddress, server: KeyPair, authorities: Path, connections: int) -> str:
    """mosquitto.conf, in the words of mosquitto 2.0."""
    lines = (
        "# Written by the fleet at every start.",
        # Heeded only when root starts it: it would become another user, who cannot read this folder.
        "user root",
        f"listener {address.port} {address.host}",
        f"cafile {authorities.resolve()}",
        f"certfile {server.certificate.resolve()}",
        f"keyfile {server.key.resolve()}",
        # With a list of each authority, or the broker refuses everybody; dated years ahead for the same reason.
        f"crlfile {(folder / REVOKED).resolve()}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        # Without it a device could connect with another's client id and take over its session.
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {(folder / ACCESS).resolve()}",
        # Each costs 24 KiB and a file descriptor: beyond this the next one is refused, not everybody.
        f"max_connections {connections}",
        # A device whose power was cut stays "online" for 1.5 times this: no client may ask for hours.
        "max_keepalive 300",
        # Without it every mutual-TLS connect waits 50 ms.
        "set_tcp_nodelay true",
        # At the default of 20 the broker holds 13 times the memory while chunks fan out, and is no faster.
        "max_inflight_messages 4",
        # For each reader, whichever comes first: 256 chunks, or many small messages, because what a fleet's devices
        # keep retained comes at once when it connects. What is lost beyond, acknowledgements and bitmaps repair.
        "max_queued_messages 20000",
        f"max_queued_bytes {256 * AVERAGE}",
        # The largest document plus its topic; a client that sends a larger packet is cut off before it is buffered.
        f"max_packet_size {MAX_PACKET}",
        # Sessions of devices that never come back, and what is queued for them, go.
        "persistent_client_expiration 14d",
        "persistence true",
        f"persistence_location {folder.resolve()}/",
        # Never on every change: each save writes the whole database.
        "autosave_interval 30",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        # A line for each connection would let whoever knocks fill the log.
        "connection_messages false",
    )
    return "\n".join(lines) + "\n"


def end_left_behind(folder: Path) -> None:
    """End a broker that a killed fleet left on its folder, found by the arguments it was started with."""
    left = ["-c", str(folder.resolve() / CONFIG)]
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if arguments[1:] == left:
            _log.warning("ending a broker that was left behind: pid %d", process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
                _, alive = psutil.wait_procs([process], timeout=STOP_WITHIN)
                for stubborn in alive:
                    stubborn.kill()
