"""The way to the broker: connects, subscribes, sends in order, and does all of it again when the broker went away.

Two bounded queues. Inwards, sound gives way to everything else: when the program is behind, the oldest sound is dropped. Outwards,
messages with `keep` wait until the broker is back and are sent with QoS 1 (at least once); sound is dropped while it is away. What is
dropped is counted in `stats` and logged. A broker that refuses the password three times in a row is given up: that mends itself by
no waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiomqtt

from apps.hermes import Outgoing, status
from duplex.errors import ConfigError

log = logging.getLogger("duologue.mqtt")
wire = logging.getLogger("duologue.mqtt.wire")
wire.setLevel(logging.WARNING)  # the library tells of every packet

REFUSED = {4, 5, 134, 135}
"""Reason codes of MQTT 3.1.1 and 5 for a wrong name or password, and for not being allowed in."""


@dataclass(frozen=True)
class BrokerConfig:
    """Where the broker is and how to be let in."""

    host: str = "localhost"
    """Name or address."""
    port: int | None = None
    """TCP port; None takes 1883, with TLS 8883."""
    username: str | None = None
    """User name, None where the broker asks for none."""
    password: str | None = None
    """Password of that user."""
    tls: bool = False
    """Whether the connection is encrypted."""
    tls_ca_certs: str | None = None
    """PEM file of the authorities to believe; None believes those of the system."""
    tls_certfile: str | None = None
    """PEM file with our own certificate, where the broker wants one."""
    tls_keyfile: str | None = None
    """PEM file with its key."""
    tls_check: bool = True
    """False takes any certificate: for trying out only."""
    keepalive_s: int = 15
    """A connection that is silent longer counts as dead, on both sides."""
    first_wait_s: float = 0.5
    """Wait before the first attempt to come back; doubles up to `longest_wait_s`."""
    longest_wait_s: float = 30.0
    """Longest wait between two attempts."""
    refusals: int = 3
    """So many refusals in a row end the program; some brokers refuse everybody for a moment while they start."""

    def __post_init__(self) -> None:
        if not self.host or (self.port is not None and not 0 < self.port < 65536):
            raise ConfigError("--host must name the broker, and --port lie between 1 and 65535.")
        if self.password is not None and self.username is None:
            raise ConfigError("A password needs a user name: give --username as well.")
        if (self.tls_ca_certs or self.tls_certfile or self.tls_keyfile or not self.tls_check) and not self.tls:
            raise ConfigError("The --tls-... options need --tls itself.")
        if self.keepalive_s < 1 or not 0 < self.first_wait_s <= self.longest_wait_s or self.refusals < 1:
            raise ConfigError("keepalive_s and refusals must be at least 1, and 0 < first_wait_s <= longest_wait_s.")

    @property
    def address(self) -> str:
        """host:port, for people."""
        return f"{self.host}:{self.tcp_port}"

    @property
    def tcp_port(self) -> int:
        """The port that is used."""
        return self.port if self.port is not None else (8883 if self.tls else 1883)

    def context(self) -> ssl.SSLContext | None:
        """What TLS needs, None without it. Raises ConfigError for files that cannot be used."""
        if not self.tls:
            return None
        for path in (self.tls_ca_certs, self.tls_certfile, self.tls_keyfile):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(f"The TLS file {path} cannot be read; give the path of a PEM file.")
        try:
            context = ssl.create_default_context(cafile=self.tls_ca_certs)
            if self.tls_certfile is not None:
                context.load_cert_chain(self.tls_certfile, self.tls_keyfile)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"The TLS files cannot be used ({error}); they must be PEM files that belong together.") from error
        if not self.tls_check:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@dataclass(slots=True)
class LinkStats:
    """What the link has done so far."""

    connections: int = 0
    sent: int = 0
    dropped_in: int = 0
    """Sound from satellites that was not looked at, because the program was behind."""
    dropped_out: int = 0
    """Sound for satellites that could not be sent."""
    lost: int = 0
    """Other messages that found no room while the broker was away."""


class Link:
    """One connection to one broker, for as long as the program runs. Everything in the thread of the event loop."""

    MOST_IN = 512
    MOST_SOUND_OUT = 128
    MOST_KEPT_OUT = 1024

    def __init__(self, config: BrokerConfig, topics: Sequence[str]) -> None:
        self.config, self.stats = config, LinkStats()
        self.client: aiomqtt.Client | None = None
        """The connection, None while there is none."""
        self._topics = list(topics)
        self._context = config.context()
        self._out: deque[Outgoing] = deque()
        self._sounds = 0  # messages in `_out` that are not kept
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self.client is not None

    def send(self, message: Outgoing) -> None:
        """Queue a message; never waits. See the top of the file for what gives way."""
        if not message.keep:
            if not self.connected or self._sounds >= self.MOST_SOUND_OUT:
                self.stats.dropped_out += 1
                _tell(self.stats.dropped_out, "%d messages of sound or fleeting events could not be sent")
                return
            self._sounds += 1
        elif message.retain:  # only the newest counts
            self._out = deque(m for m in self._out if not (m.retain and m.topic == message.topic))
        if len(self._out) - self._sounds >= self.MOST_KEPT_OUT:
            self._out.remove(next(m for m in self._out if m.keep))
            self.stats.lost += 1
            _tell(self.stats.lost, "%d messages were lost while the broker was away")
        self._out.append(message)
        self._idle.clear()
        self._ready.set()

    async def flush(self, longest_s: float = 2.0) -> None:
        """Until all that was queued is sent, or `longest_s` have passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), longest_s)

    async def run(self, take: Callable[[str, bytes], None], changed: Callable[[bool], None]) -> None:
        """Serve until cancelled: `take(topic, payload)` for each message, `changed(connected)` when the broker comes and goes.

        Raises ConfigError when the broker will not have us, or cannot be trusted at the first attempt. Cancelling disconnects.
        """
        wait_s, refusals = self.config.first_wait_s, 0
        while True:
            try:
                async with self._client() as client:
                    await self._subscribe(client)
                    wait_s, refusals = self.config.first_wait_s, 0
                    await self._serve(client, take, changed)
            except aiomqtt.MqttError as error:
                refusals = self._judge(error, refusals)
                log.warning("No connection to the broker %s (%s); trying again in %.1f s.", self.config.address, error, wait_s)
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(2 * wait_s, self.config.longest_wait_s)

    def _client(self) -> aiomqtt.Client:
        will = status(False)
        return aiomqtt.Client(
            self.config.host,
            self.config.tcp_port,
            username=self.config.username,
            password=self.config.password,
            identifier=f"duologue-{secrets.token_hex(4)}",
            keepalive=self.config.keepalive_s,
            timeout=10.0,
            tls_context=self._context,
            tls_insecure=None if self._context is None else not self.config.tls_check,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True),
            queue_type=cast(Any, self._inbox),
            logger=wire,
        )

    def _inbox(self, maxsize: int = 0) -> _Inbox:
        return _Inbox(self.MOST_IN, self.stats)

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        for topic in self._topics:
            granted = await client.subscribe(topic, qos=0 if topic.endswith("rame") else 1)
            if any(_code(code) >= 128 for code in granted):
                log.error("The broker does not let us read %s: what comes there will be missing. See its access rules.", topic)

    async def _serve(self, client: aiomqtt.Client, take: Callable[[str, bytes], None], changed: Callable[[bool], None]) -> None:
        self.client = client
        self.stats.connections += 1
        self.send(status(True))
        changed(True)
        log.info("Connected to the broker %s.", self.config.address)
        tasks = {asyncio.create_task(self._send_all(client)), asyncio.create_task(_receive_all(client, take))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.client = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._drop_sound()
            changed(False)

    async def _send_all(self, client: aiomqtt.Client) -> None:
        """Send what is queued, in order. A message that failed stays at its place when it is one to keep."""
        while True:
            while self._out:
                message = self._out[0]
                await client.publish(message.topic, message.payload, qos=int(message.keep), retain=message.retain)
                self.stats.sent += 1
                if self._out and self._out[0] is message:
                    self._out.popleft()
                    self._sounds -= not message.keep
            self._idle.set()
            self._ready.clear()
            await self._ready.wait()

    def _drop_sound(self) -> None:
        self.stats.dropped_out += self._sounds
        self._out, self._sounds = deque(m for m in self._out if m.keep), 0

    def _judge(self, error: aiomqtt.MqttError, refusals: int) -> int:
        """Refusals in a row so far; ConfigError when waiting is of no use."""
        text = str(error)
        if isinstance(error, aiomqtt.MqttCodeError) and _code(error.rc) in REFUSED:
            if refusals + 1 >= self.config.refusals:
                raise ConfigError(
                    f"The broker {self.config.address} refuses the user {self.config.username or '(none given)'}: "
                    "check --username and --password, and the broker's password file and access rules."
                ) from error
            return refusals + 1
        if not self.stats.connections and ("certificate verify failed" in text.lower() or "SSL" in text):
            raise ConfigError(
                f"There is no secure connection to the broker {self.config.address} ({text}): check --port, --tls-ca-certs, and "
                "that the broker's certificate is made out for this host name."
            ) from error
        return 0


class _Inbox(asyncio.Queue[aiomqtt.Message]):
    """Messages not yet looked at; when full, the oldest sound goes, and only then the oldest of anything."""

    def __init__(self, most: int, stats: LinkStats) -> None:
        super().__init__()
        self._most, self._stats = most, stats

    def _init(self, maxsize: int) -> None:
        self._waiting: deque[aiomqtt.Message] = deque()
        self._queue: Any = self._waiting  # what the parent counts

    def _put(self, item: aiomqtt.Message) -> None:
        if len(self._waiting) >= self._most:
            sound = next((i for i, m in enumerate(self._waiting) if m.topic.value.endswith("Frame")), 0)
            del self._waiting[sound]
            self._stats.dropped_in += 1
            _tell(self._stats.dropped_in, "%d messages from satellites were dropped: this machine is too slow for so many")
        self._waiting.append(item)


async def _receive_all(client: aiomqtt.Client, take: Callable[[str, bytes], None]) -> None:
    async for message in client.messages:
        take(message.topic.value, _bytes(message.payload))


def _bytes(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else str(payload or "").encode()


def _code(reason: Any) -> int:
    """A reason code as a number, whichever form the library gives it."""
    return int(getattr(reason, "value", reason) or 0)


def _tell(count: int, text: str) -> None:
    """Warn at the first, tenth, hundredth, ... time."""
    if count == 10 ** (len(str(count)) - 1):
        log.warning(text, count)
