"""A house for the tests of the dialogue manager: sites, conversations with scripted models, and a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent.doubles import spoken
from agent.virtual_time import run_virtual
from apps.mqtt_conversation import ConversationConfig
from apps.mqtt_dialogue import Dialogue
from tests.apps.satellites import House, Satellite, Sessions

LONG = "This answer goes on for quite a while so that there is time to interrupt it in the middle of what it says."
Act = Callable[[House, Dialogue], Awaitable[Any]]


def at_home(
    act: Act, *sites: str, sessions: Sessions | None = None, config: ConversationConfig | None = None, most: int = 4, **options: Any
) -> House:
    """Run `act` in a house with these sites; afterwards nothing may be running any more."""
    house = House(sessions or Sessions())

    async def main() -> None:
        async with Dialogue(house.sessions, house.send, config or ConversationConfig(quiet_s=4.0), sites, most) as dialogue:
            house.take = dialogue.take
            microphones = [asyncio.create_task(house.add(site, **options).run()) for site in sites]
            dialogue.changed(True)
            await asyncio.sleep(0.1)
            await act(house, dialogue)
            for microphone in microphones:
                microphone.cancel()
        await asyncio.gather(*microphones, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())
    return house


async def wake(satellite: Satellite) -> str:
    """The wake word; the session's id."""
    count = len(satellite.of("sessionStarted"))
    satellite.tell("hermes/hotword/porcupine/detected", siteId=satellite.site, modelId="porcupine")
    return str((await satellite.until("sessionStarted", count + 1))["sessionId"])


async def ask(satellite: Satellite, lasts_s: float = 1.0) -> None:
    """Say something, and hear the answer out."""
    satellite.speak(spoken(lasts_s))
    await satellite.until("textCaptured", len(satellite.of("textCaptured")) + 1)
    await satellite.silent(0.5)
