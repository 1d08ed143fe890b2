"""The life of a response in a conversation: it becomes audible, is heard word by word, and runs out, is stopped, or fails.

    prepared -> released -> audible -> drained    what was heard goes into the history
                               |-----> stopped    so does what was heard until then

`Session` (agent.session) decides when; here is what follows. A response's making is in agent.response.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal

from agent.steering import Steering
from duplex import turn_signals as turn
from duplex.audio import AGENT_FRAME, AGENT_RATE_HZ, USER_FRAME, USER_RATE_HZ, seconds, user_samples
from duplex.events import AgentBackchannel, AgentTranscript, FunctionCalled, ResponseEnded, ResponseStarted
from encoders.ears import Transcript

if TYPE_CHECKING:
    from agent.backchannels import Backchannels
    from agent.reply import Reply
    from agent.response import Made, Manner, Responder
    from agent.transport import Transport
    from agent.user_turn import UserTurn
    from duplex.playout import Playout
    from duplex.predictor import Ending

log = logging.getLogger(__name__)


class Answering(Steering):
    """The answering side of a `Session`, which owns everything that is named here."""

    playout: Playout
    _transport: Transport
    _responder: Responder
    _audible: int | None
    """The newest response that was audible."""
    _silent_at: int
    """When a held response fell silent; 0 while none is held."""
    _underruns: int
    _backchannels: Backchannels

    @property
    def sending(self) -> int | None:
        """For a transport, in `send`: the epoch of the audible response that this frame belongs to; None when it is mere silence."""
        return self._audible if self.playout.playing is not None and self.playout.playing == self._audible else None

    # -- making -------------------------------------------------------------------------------------------------------------------

    async def _respond(self, epoch: int, user_turn: UserTurn | None, manner: Manner, line: str | None, made: Made) -> None:
        try:
            if self._commits:
                await asyncio.wait(self._commits)  # what was committed is part of what is answered
            messages = self.history.messages
            if user_turn is not None:
                text = await self._listener.words(user_turn)
                if not text:
                    self._receive(turn.NothingSaid(self._now))
                    return
                if self._reply is not None and self._reply.epoch == epoch:
                    self._reply.user_text = text
                heard = user_turn.transcript
                messages = self.history.with_user(text, heard.speech if heard else None)
            if line is not None:
                await self._responder.say(epoch, line, manner)
                return
            await self._responder.respond(epoch, messages, manner, made)
            if made.malformed_calls:
                self._trouble("The language model wrote a function call that is not well-formed; it was dropped.", "malformed_call")
        except* Exception as errors:  # a response that fails must not end the conversation
            log.warning("response %d failed", epoch, exc_info=errors)
            self._trouble(f"A response failed: {errors.exceptions[0]}", "response_failed")
            self.playout.finish(epoch)

    async def _read(self, heard: Transcript) -> Ending | None:
        return await self._responder.read(self.history.with_user(heard.text, heard.speech), self._manner)

    async def _read_ahead(self) -> None:
        """Between turns: what was heard, and now and then, when old turns were forgotten, everything that is left."""
        # of the next turn nothing is known but that it is the user's: a stop alone is not read
        await self._read(Transcript(".", self._now))

    # -- backchannels -------------------------------------------------------------------------------------------------------------

    async def _make_backchannels(self) -> None:
        try:
            await self._backchannels.make(self._responder, self._manner)
        except Exception as error:  # the conversation goes on without them
            log.warning("no backchannels", exc_info=error)
            self._trouble(f"The agent's backchannels could not be made: {error}", "other")

    def _give_backchannel(self) -> None:
        if not self._manner.spoken:
            return
        if self._backchannels.of(self._manner.speaker):
            text, samples = self._backchannels.next()
            self.playout.murmur(samples)
            self._emit(AgentBackchannel(self._now, text))
        else:  # another voice since
            self._start(self._make_backchannels(), "backchannels")

    # -- sounding -----------------------------------------------------------------------------------------------------------------

    def _note_playing(self, peak: float) -> None:
        """After each pulled frame: has the response become audible, has it run out, did it stall?"""
        reply = self._reply
        if reply is None:
            return
        readable = reply.released and not reply.manner.spoken and self.playout.texts(reply.epoch)[1] != ""
        if not reply.started and (peak > 1e-3 or readable):
            reply.started = True
            self._begin_speaking(reply)
        if reply.started and self.playout.playing == reply.epoch:
            reply.marks.sent += AGENT_FRAME
            if (words := self.playout.words_heard(reply.epoch)) != reply.marks.words:
                reply.marks.note(self.playout.texts(reply.epoch)[0], words)
        if self.playout.underruns > self._underruns:
            self._underruns = self.playout.underruns
            if self._underruns in (1, 50, 500):
                self._trouble("The agent's voice ran dry for a moment: this machine is too slow for the profile.", "too_slow")
        if self.playout.drained() == reply.epoch:
            self._finish_reply(reply)

    def _note_heard(self) -> None:
        if (reply := self._reply) is not None and reply.started:
            texts = self.playout.texts(reply.epoch)
            if texts != reply.texts:
                reply.texts = texts
                self._emit(AgentTranscript(self._now, reply.epoch, *texts))

    def _begin_speaking(self, reply: Reply) -> None:
        latency: float | None = None
        if reply.turn is not None:
            latency = seconds(self._now - USER_FRAME + self._committed() - reply.turn.last_voiced)
            self._take_words(reply)
        self._audible = reply.epoch
        self._receive(turn.ResponseAudible(self._now, reply.epoch))
        self._emit(ResponseStarted(self._now - USER_FRAME + self._committed(), reply.epoch, latency))

    def _take_words(self, reply: Reply) -> None:
        """The turn that the reply answers is over: its words go into the history."""
        assert reply.turn is not None
        self.remember(reply.turn, reply.user_text or reply.turn.text)
        if self._listener.turn is reply.turn:
            self._listener.turn = None

    def _finish_reply(self, reply: Reply) -> None:
        done = reply.started or bool(reply.made.calls)
        heard, text = self.playout.texts(reply.epoch)
        if not reply.started and reply.turn is not None:  # the words stay, though nothing was said to them
            self._take_words(reply)
        self.history.add("assistant", heard, ("agent", reply.epoch))
        for call in reply.made.calls:
            self.history.add("call", call.written(), ("call", call.call_id))
            self._emit(FunctionCalled(self._now, reply.epoch, call.call_id, call.name, call.arguments))
        self.playout.drop(reply.epoch)
        self._reply = None
        self._end(reply, "completed" if done else "failed", self._now + self._committed(), heard, text)
        self._receive(turn.ResponseDrained(self._now, reply.epoch))
        self._start(self._read_ahead(), "read-ahead")

    def _stop_reply(self, *, asked: bool) -> None:
        reply = self._reply
        if reply is None:
            return
        heard, text = self.playout.texts(reply.epoch)
        heard = reply.heard(heard, self._now, AGENT_RATE_HZ / USER_RATE_HZ)
        self.playout.stop()
        self._cancel_reply()
        self._reply = None
        self.history.add("assistant", heard, ("agent", reply.epoch))
        silent_at = self._silent_at or self._silence_after_this_frame()
        self._silent_at = 0
        latency = None if asked else seconds(silent_at - self.turns.overlap_at)
        self._end(reply, "cancelled" if asked else "interrupted", silent_at, heard, text, latency)

    def _close_reply(self) -> None:
        """The conversation ends while a response is under way."""
        if (reply := self._reply) is not None and reply.started:
            heard, text = self.playout.texts(reply.epoch)
            self.history.add("assistant", heard, ("agent", reply.epoch))
            self._end(reply, "cancelled", self._now, heard, text)
        self._reply = None

    def _end(
        self,
        reply: Reply,
        reason: Literal["completed", "interrupted", "cancelled", "failed"],
        at: int,
        heard: str,
        text: str,
        stop_latency_s: float | None = None,
    ) -> None:
        self._ledger.keep(reply.epoch, reply.marks)
        self._emit(ResponseEnded(at, reply.epoch, reason, heard, text, stop_latency_s, reply.made.cut_short))

    def _cancel_reply(self) -> None:
        if self._reply is not None and self._reply.task is not asyncio.current_task():
            self._reply.task.cancel()

    def _silence_after_this_frame(self) -> int:
        fade = user_samples(self.config.playout.fade_ms / 1000)
        return self._now + fade + self._committed()

    def _committed(self) -> int:
        return self._transport.committed() * USER_RATE_HZ // AGENT_RATE_HZ
