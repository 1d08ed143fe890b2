"""What an application may ask of a running conversation, besides letting it run: settings, texts, functions, and when to answer.

`Session` is made of this and of the conversation itself. Nothing here waits; every call may come at any moment of a conversation, from the
session's own event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agent.chat_template import Message
from duplex import turn_signals as turn
from duplex.audio import AGENT_RATE_HZ, Samples
from duplex.events import Event, Trouble, TroubleCode, UserTranscript
from duplex.vad import VoiceActivityConfig

if TYPE_CHECKING:
    from agent.history import History
    from agent.listener import Listener
    from agent.parts import Parts
    from agent.reply import Ledger, Reply
    from agent.response import Manner
    from agent.session import SessionConfig
    from agent.turn_detection import TurnDetectionConfig
    from agent.user_turn import UserTurn
    from duplex.turns import TurnTaking
    from duplex.vad import VoiceActivity

MOST_PLAYED_S = 3600.0


class Steering:
    """The asking side of a `Session`, which owns everything that is named here."""

    config: SessionConfig
    history: History
    turns: TurnTaking
    _parts: Parts
    _manner: Manner
    _listener: Listener
    _activity: VoiceActivity
    _detection: TurnDetectionConfig
    _once: Manner | None
    _commits: set[asyncio.Task[None]]
    _reply: Reply | None
    _ledger: Ledger
    _now: int

    # -- settings -----------------------------------------------------------------------------------------------------------------

    @property
    def manner(self) -> Manner:
        """How responses are given from now on; set a new one at any time."""
        return self._manner

    @manner.setter
    def manner(self, manner: Manner) -> None:
        self._manner = manner
        self._drop_prepared_unless(manner)

    @property
    def detection(self) -> TurnDetectionConfig:
        """How turn ends are found; set a new one at any time."""
        return self._detection

    @detection.setter
    def detection(self, detection: TurnDetectionConfig) -> None:
        if (self._detection.kind == "manual") != (detection.kind == "manual"):
            if self.turns.floor in ("user", "pause"):
                self._receive(turn.VoiceEnded(self._now))
                self._receive(turn.TurnKept(self._now))
            self._listener.forget()
            if detection.kind == "manual":
                self._listener.begin(self._now, 0.0)
        self._detection = detection
        self.turns.config = replace(self.turns.config, interrupt=detection.interrupt and self.config.turns.interrupt)
        self._activity.config = _activity(self.config.activity, detection.onset_threshold)

    def check_manner(self, manner: Manner) -> None:
        """Raises ValueError when the LLM's context has no room for these instructions and functions."""
        self._parts.thinker.render(manner.prompt, [Message("user", "Hello")], open_assistant=False)

    def change_voice(self, speaker: Any) -> None:
        """The agent's voice from the next response on: a speaker in the form that the voice decoder makes, None for its own.

        Raises ValueError when this profile's voice cannot be that speaker.
        """
        self._parts.voice.open(0, speaker)
        self.manner = replace(self._manner, speaker=speaker)

    # -- responses ----------------------------------------------------------------------------------------------------------------

    @property
    def responding(self) -> int | None:
        """The epoch of the response that is being given, audible or about to be; None when there is none."""
        return self._reply.epoch if self._reply is not None and self._reply.released else None

    def cancel_response(self) -> None:
        """Make the agent stop now; history keeps what was heard."""
        self._receive(turn.CancelAsked(self._now))

    def ask(self, text: str) -> None:
        """A typed message from the user: answered as though it had been said."""
        self.history.add("user", text)
        self._receive(turn.ResponseAsked(self._now))

    def respond(self, manner: Manner | None = None) -> int | None:
        """Answer now, in this manner for once. Returns the response's epoch; None when one is being given, or the user is speaking."""
        if self.responding is not None:
            return None
        self._drop_prepared_unless(manner or self._manner)
        self._once = manner
        self._receive(turn.ResponseAsked(self._now))
        self._once = None
        return self.responding

    # -- what was said ------------------------------------------------------------------------------------------------------------

    def add(self, kind: Literal["user", "assistant", "system", "result"], text: str, key: Hashable) -> None:
        """A text that belongs to the dialogue from now on; a `result` is what came of a function call. Nothing is answered."""
        self.history.add(kind, text, key)

    def add_sound(self, samples: Samples, key: Hashable, heard: Callable[[str], None]) -> None:
        """User samples [n] apart from the stream: their words join the dialogue once they are recognised, and `heard` is told them."""
        ears = self._parts.ears
        ear = ears.open()
        ears.begin_turn(ear, 0)
        ears.feed(ear, samples)
        window = ears.window(ear)

        async def recognise() -> None:
            try:
                transcript = await self._listener.recognise(window)
            except Exception as error:  # the conversation goes on without these words
                self._trouble(f"Listening failed: {error}", "listening_failed")
                return
            self.history.add("user", transcript.text, key)
            heard(transcript.text)

        self._commit(recognise())

    def commit(self) -> bool:
        """Take what the user said as a turn, now. Without turn detection it is only remembered; else it is answered as well.

        Returns False when there is no turn.
        """
        if self._detection.kind != "manual":
            if self.turns.floor == "user":
                self._receive(turn.VoiceEnded(self._now))
            if self.turns.floor != "pause":
                return False
            if self._detection.respond:
                self._receive(turn.ResponseAsked(self._now))
            else:
                self._keep_turn()
            return True
        if self._listener.turn is None or self._listener.turn.onset >= self._now:
            return False
        self._keep_turn()
        return True

    def clear(self) -> None:
        """Forget what the user said since the last turn."""
        if self._detection.kind == "manual":
            self._listener.forget()
            self._listener.begin(self._now, 0.0)
        elif self.turns.floor in ("user", "pause"):
            self._receive(turn.VoiceEnded(self._now))
            self._receive(turn.TurnKept(self._now))

    def truncate(self, epoch: int, played_s: float) -> str | None:
        """Only the first `played_s` of a response were heard, counted in its own sound; what goes beyond its end is clamped.

        A response that is still being given is stopped. Returns the words that stay; None when the response is not remembered.
        """
        if self._reply is not None and self._reply.epoch == epoch:
            self.cancel_response()
        marks = self._ledger.marks(epoch)
        if marks is None:
            return None
        heard = marks.until(round(min(played_s, MOST_PLAYED_S) * AGENT_RATE_HZ))
        self.history.rewrite(("agent", epoch), heard)
        return heard

    def played(self, epoch: int, played_s: float) -> None:
        """The client says how much of a response has left its loudspeaker; what counts as heard at a stop follows it."""
        if self._reply is not None and self._reply.epoch == epoch:
            self._reply.acknowledged = (round(min(played_s, MOST_PLAYED_S) * AGENT_RATE_HZ), self._now)

    def remember(self, user_turn: UserTurn, text: str) -> None:
        """The user's turn is over, and these are its words."""
        self.history.add("user", text, ("user", user_turn.number))
        self._emit(UserTranscript(user_turn.last_voiced, text, True, user_turn.number))

    def _drop_prepared_unless(self, manner: Manner) -> None:
        """A response that was prepared, unheard, in another manner than this is not the one that is wanted."""
        if self._reply is not None and not self._reply.manner.same(manner):
            self._receive(turn.MannerChanged(self._now))

    def _keep_turn(self) -> None:
        """The turn ends here; its words are remembered and nothing is answered."""
        manual = self._detection.kind == "manual"
        cut = self._listener.cut(to_the_end=manual)

        async def keep() -> None:
            try:
                user_turn, text = await cut
            except Exception as error:  # the conversation goes on without these words
                self._trouble(f"Listening failed: {error}", "listening_failed")
                return
            self.remember(user_turn, text)

        self._commit(keep())
        if manual:
            self._listener.begin(self._now, 0.0)
        else:
            self._receive(turn.TurnKept(self._now))

    def _trouble(self, message: str, code: TroubleCode) -> None:
        self._emit(Trouble(self._now, message, code))

    def _commit(self, coroutine: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._start(coroutine, "commit")
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return task

    # -- the session's ------------------------------------------------------------------------------------------------------------

    def _receive(self, signal: turn.Signal) -> None:
        raise NotImplementedError

    def _emit(self, event: Event) -> None:
        raise NotImplementedError

    def _start(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        raise NotImplementedError


def _activity(config: VoiceActivityConfig, threshold: float | None) -> VoiceActivityConfig:
    if threshold is None:
        return config
    onset = float(np.clip(threshold, 0.05, 0.95))
    return replace(config, onset_threshold=onset, offset_threshold=max(onset - 0.15, 0.02))
