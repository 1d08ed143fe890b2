"""The way to the broker, against a real mosquitto with password file, access rules and TLS; and the queues, without one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiomqtt
import pytest

from apps.hermes import Outgoing, state, status
from apps.mqtt_link import BrokerConfig, Link, LinkStats, _Inbox
from duplex.errors import ConfigError
from tests.apps.mosquitto_broker import AGENT, PASSWORD, SATELLITE, STRANGER, Mosquitto, free_port, running_mosquitto
from tests.apps.satellites import when


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


def configured(broker: Mosquitto, **changes: object) -> BrokerConfig:
    plain = {"host": "127.0.0.1", "port": broker.port, "username": AGENT, "password": PASSWORD, "first_wait_s": 0.2}
    return BrokerConfig(**(plain | changes))  # type: ignore[arg-type]


class Ends:
    """What a link brought, and when the broker came and went."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.changes: list[bool] = []

    def take(self, topic: str, payload: bytes) -> None:
        self.messages.append((topic, payload))


@contextlib.asynccontextmanager
async def running(link: Link) -> AsyncIterator[Ends]:
    ends = Ends()
    task = asyncio.create_task(link.run(ends.take, ends.changes.append))
    try:
        yield ends
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def witness(broker: Mosquitto, user: str = SATELLITE, topic: str = "duologue/#") -> AsyncIterator[list[tuple[str, bytes]]]:
    """Another client, and what it has seen."""
    seen: list[tuple[str, bytes]] = []

    async with aiomqtt.Client("127.0.0.1", broker.port, username=user, password=PASSWORD) as client:

        async def read() -> None:
            async for message in client.messages:
                seen.append((message.topic.value, bytes(message.payload)))  # type: ignore[arg-type]

        await client.subscribe(topic, qos=1)
        reading = asyncio.create_task(read())
        try:
            yield seen
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.broker
@pytest.mark.parametrize("tls", [False, True])
async def test_messages_go_both_ways_and_the_status_is_retained(mosquitto: Mosquitto, tls: bool) -> None:
    secure = {"port": mosquitto.tls_port, "tls": True, "tls_ca_certs": str(mosquitto.ca)} if tls else {}
    link = Link(configured(mosquitto, **secure), ["hermes/tts/say"])
    async with running(link) as ends:
        await when(lambda: link.connected, 30)
        await link.flush()
        async with witness(mosquitto) as seen:
            await when(lambda: ("duologue/status", b"online") in seen, 30)
            link.send(Outgoing("duologue/x/event", b"1"))
            link.send(Outgoing("duologue/x/event", b"2", keep=False))
            await when(lambda: len([t for t, _ in seen if t == "duologue/x/event"]) >= 2, 30)
            assert [p for t, p in seen if t == "duologue/x/event"] == [b"1", b"2"]
        async with aiomqtt.Client("127.0.0.1", mosquitto.port, username=SATELLITE, password=PASSWORD) as client:
            await client.publish("hermes/tts/say", b"{}", qos=1)
        await when(lambda: ends.messages == [("hermes/tts/say", b"{}")], 30)


@pytest.mark.broker
async def test_a_killed_broker_is_found_again_and_gets_what_was_kept(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    link = Link(configured(mosquitto), ["hermes/tts/say"])
    async with running(link) as ends:
        await when(lambda: link.connected, 30)
        mosquitto.kill()
        await when(lambda: not link.connected, 30)
        link.send(state("kitchen", "speaking"))
        link.send(state("kitchen", "idle"))
        link.send(Outgoing("duologue/kitchen/event", b"kept"))
        link.send(Outgoing("duologue/kitchen/event", b"sound", keep=False))
        await asyncio.sleep(0.5)
        mosquitto.start()
        async with witness(mosquitto) as seen:
            await when(lambda: ("duologue/kitchen/state", b"idle") in seen and ("duologue/status", b"online") in seen, 30)
            async with aiomqtt.Client("127.0.0.1", mosquitto.port, username=SATELLITE, password=PASSWORD) as client:
                await client.publish("hermes/tts/say", b"again", qos=1)
            await when(lambda: ("hermes/tts/say", b"again") in ends.messages, 30)
            assert ("duologue/kitchen/state", b"speaking") not in seen  # only the newest state counts
            assert b"sound" not in [payload for _, payload in seen]
    assert ends.changes[:3] == [True, False, True]
    assert link.stats.dropped_out == 1 and link.stats.connections == 2
    assert "trying again" in caplog.text


@pytest.mark.broker
async def test_the_last_will_tells_of_a_death(mosquitto: Mosquitto) -> None:
    link = Link(configured(mosquitto), [])
    async with witness(mosquitto) as seen:
        async with running(link):
            await when(lambda: ("duologue/status", b"online") in seen, 30)
            client = link.client
            assert client is not None
            client._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]  # the cable is pulled: no goodbye
            await when(lambda: ("duologue/status", b"offline") in seen, 30)
            await when(lambda: seen[-1] == ("duologue/status", b"online"), 30)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "wrong"}, "refuses the user agent"),
        ({"username": None, "password": None}, "refuses the user (none given)"),
    ],
)
async def test_a_broker_that_refuses_us_is_given_up(mosquitto: Mosquitto, changes: dict[str, object], words: str) -> None:
    link = Link(configured(mosquitto, **changes), [])
    with pytest.raises(ConfigError) as told:
        await asyncio.wait_for(link.run(lambda topic, payload: None, lambda connected: None), 30)
    assert words in str(told.value) and "--password" in str(told.value)


@pytest.mark.broker
async def test_a_broker_with_a_foreign_certificate_is_not_believed(mosquitto: Mosquitto) -> None:
    foreign = {"port": mosquitto.tls_port, "tls": True, "tls_ca_certs": str(mosquitto.folder / "foreign.pem")}
    with pytest.raises(ConfigError, match="no secure connection"):
        await asyncio.wait_for(Link(configured(mosquitto, **foreign), []).run(lambda t, p: None, lambda c: None), 30)
    careless = Link(configured(mosquitto, port=mosquitto.tls_port, tls=True, tls_check=False), [])
    async with running(careless):
        await when(lambda: careless.connected, 30)


@pytest.mark.broker
async def test_what_the_access_rules_forbid_does_not_end_the_program(mosquitto: Mosquitto) -> None:
    link = Link(configured(mosquitto, username=STRANGER), ["hermes/tts/say"])
    async with running(link):
        await when(lambda: link.connected, 30)
        link.send(Outgoing("hermes/tts/say", b"{}"))
        await link.flush()
        assert link.connected


async def test_a_broker_that_is_not_there_yet_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    link = Link(BrokerConfig("127.0.0.1", free_port(), first_wait_s=0.05, longest_wait_s=0.1), [])
    async with running(link) as ends:
        await when(lambda: caplog.text.count("trying again") >= 3, 30)
        assert ends.changes == []


def test_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    for wrong in ({"password": "x"}, {"port": 0}, {"host": ""}, {"tls_ca_certs": "x"}, {"tls_check": False}, {"keepalive_s": 0}):
        with pytest.raises(ConfigError):
            BrokerConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read"):
        BrokerConfig(tls=True, tls_ca_certs=str(tmp_path / "missing.pem")).context()
    (tmp_path / "rubbish.pem").write_text("rubbish")
    with pytest.raises(ConfigError, match="PEM"):
        BrokerConfig(tls=True, tls_ca_certs=str(tmp_path / "rubbish.pem")).context()
    assert BrokerConfig(tls=True).tcp_port == 8883 and BrokerConfig().tcp_port == 1883


def message(topic: str) -> aiomqtt.Message:
    return aiomqtt.Message(topic, b"", 0, False, 0, None)


async def test_sound_gives_way_when_the_program_is_behind() -> None:
    inbox = _Inbox(3, stats := LinkStats())
    for topic in ("hermes/tts/say", "hermes/audioServer/a/audioFrame", "hermes/audioServer/b/audioFrame", "hermes/tts/say"):
        inbox.put_nowait(message(topic))
    assert [inbox.get_nowait().topic.value for _ in range(inbox.qsize())] == [
        "hermes/tts/say",
        "hermes/audioServer/b/audioFrame",
        "hermes/tts/say",
    ]
    assert stats.dropped_in == 1


async def test_a_broker_that_stays_away_costs_only_the_oldest_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    link = Link(BrokerConfig(), [])
    for number in range(link.MOST_KEPT_OUT + 5):
        link.send(Outgoing("duologue/x/event", b"%d" % number))
    link.send(status(False))
    link.send(status(True))
    assert link.stats.lost == 6
    assert len(link._out) == link.MOST_KEPT_OUT
    assert link._out[0].payload == b"6" and link._out[-1].payload == b"online"
    assert "were lost" in caplog.text
