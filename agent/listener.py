"""Listening: the transcript of the user's current turn, kept up to date while it is spoken, one recognition at a time.

The ears are fed in the event loop, frame by frame; recognising is a job of the model worker on a snapshot. While a turn goes on the
thinker reads its words, so that a response need not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agent.speech_labels import labelled
from agent.user_turn import UserTurn
from agent.worker import ModelWorker, Priority
from duplex.audio import Samples, user_samples
from duplex.events import Event, Trouble, UserTranscript
from duplex.predictor import Ending
from encoders.ears import Ears, Transcript

log = logging.getLogger(__name__)

Starter = Callable[[Coroutine[object, object, None], str], object]


class Listener:
    """One conversation's ears. `turn` is the turn that is being listened to; None between turns."""

    def __init__(
        self,
        ears: Ears,
        worker: ModelWorker,
        emit: Callable[[Event], None],
        read: Callable[[Transcript], Awaitable[Ending | None]],
        start: Starter,
    ) -> None:
        """read: lets the thinker read the words so far and say how likely the sentence ends there. start: owns a task for us."""
        self.turn: UserTurn | None = None
        self.now = 0
        """User samples fed so far."""
        self.preread = False
        """Whether the thinker shall read along now."""
        self._ears, self._worker, self._emit, self._read, self._start = ears, worker, emit, read, start
        self._ear = ears.open()
        self._wanted = asyncio.Event()
        self._listened_at = 0
        self._turns = 0

    def feed(self, samples: Samples, end: int) -> None:
        """Take the next user samples; `end` is the position after them."""
        self._ears.feed(self._ear, samples)
        self.now = end

    def begin(self, at: int, preroll_s: float) -> UserTurn:
        """A turn begins at `at`."""
        self._turns += 1
        self.turn = UserTurn(self._turns, at, at)
        self._ears.begin_turn(self._ear, max(at - user_samples(preroll_s), 0))
        self._listened_at = self.now
        return self.turn

    def want(self, every_s: float = 0.0) -> None:
        """Bring the transcript up to date, if the last time is `every_s` ago."""
        if self.turn is not None and self.now - self._listened_at >= user_samples(every_s):
            self._wanted.set()

    async def words(self, turn: UserTurn) -> str:
        """The words of the current turn once the transcript covers them."""
        while not turn.fresh():
            turn.updated.clear()
            self._wanted.set()
            await turn.updated.wait()
        return turn.text

    def cut(self, *, to_the_end: bool) -> Coroutine[Any, Any, tuple[UserTurn, str]]:
        """End the current turn here; awaiting the result gives the turn and its words. Raises then what the ears raise.

        to_the_end: recognise all sound up to now, not only up to the last voice. Sound that follows belongs to the next turn.
        """
        turn = self.turn
        assert turn is not None, "there is no turn to cut"
        if to_the_end:
            turn.last_voiced = self.now
        window = None if turn.fresh() else self._ears.window(self._ear)
        self.turn = None

        async def words() -> tuple[UserTurn, str]:
            if window is not None:
                turn.transcript = await self.recognise(window)
            return turn, turn.text

        return words()

    async def recognise(self, window: Any) -> Transcript:
        """A snapshot of the ears, recognised as soon as the model worker gets to it."""
        return await self._worker.run(Priority.LISTEN, "listen", self._ears.transcribe, window)

    def forget(self) -> None:
        """Drop the current turn and its sound."""
        self.turn = None
        self._ears.begin_turn(self._ear, self.now)

    async def run(self) -> None:
        """Recognise whenever it is wanted, for ever."""
        ears = self._ears
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            turn = self.turn
            if turn is None or turn.fresh():  # what was asked for is there already
                continue
            self._listened_at = self.now
            window = ears.window(self._ear)
            try:
                transcript = await self.recognise(window)
            except Exception as error:  # a failed transcript must not end the conversation
                log.exception("listening failed")
                self._emit(Trouble(self.now, f"Listening failed: {error}", "listening_failed"))
                transcript = Transcript("", self.now)
            if self.turn is turn:
                ears.settle(self._ear, window, transcript)
                self._note(turn, transcript)
            turn.updated.set()

    def _note(self, turn: UserTurn, transcript: Transcript) -> None:
        changed = transcript.text != turn.text
        turn.transcript = transcript
        if (labels := labelled(transcript, turn.labels)) is not None:
            turn.labels = labels
            self._emit(labels)
        if changed:
            turn.ends = None
            self._emit(UserTranscript(transcript.end, transcript.text, False, turn.number))
        if transcript.text and turn.ends is None and self.preread:
            self._start(self._preread(turn, transcript), "read")  # before a waiting response goes on: it is short

    async def _preread(self, turn: UserTurn, transcript: Transcript) -> None:
        ends = await self._read(transcript)
        if turn.transcript is not None and turn.transcript.text == transcript.text:
            turn.ends = ends
