"""Our conversation's events and sound, written down as Realtime events.

One user item is open from the moment the user has the floor until their turn is over; one response is open from its first sound (or from
the client's asking for it) until its last. No I/O and no clock: events and frames come in, in order, and go into an outbox.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apps.realtime_audio import Format, SoundOut
from apps.realtime_items import Item, Items, function_call, message, new_id
from apps.realtime_outbox import Outbox
from duplex.audio import AGENT_RATE_HZ, Samples, seconds
from duplex.events import (
    AgentBackchannel,
    AgentTranscript,
    Backchannel,
    Event,
    FloorChanged,
    FunctionCalled,
    Levels,
    ResponseEnded,
    ResponseStarted,
    SpeculationDiscarded,
    SpeechLabelled,
    Trouble,
    TroubleCode,
    UserStarted,
    UserStopped,
    UserTranscript,
)

TROUBLES: dict[TroubleCode, str] = {
    "too_slow": "The agent's voice broke off for a moment: the server cannot keep up. "
    "Fewer conversations at once, or a smaller profile, would help.",
    "response_failed": "The agent could not answer: something failed on the server, whose log says what. Ask again.",
    "listening_failed": "The agent did not hear what was said: something failed on the server, whose log says what. Say it again.",
}
"""What a client's user reads, where the words of the event are for somebody who sits at the server."""


@dataclass(slots=True)
class _Answer:
    """The response that is open."""

    epoch: int
    id: str
    item_id: str
    spoken: bool
    metadata: Any = None
    encoder: SoundOut | None = None
    audio_format: Format = "audio/pcm"
    begun: bool = False
    """Its message has been announced."""
    text: str = ""
    sent: int = 0
    output: list[dict[str, Any]] = field(default_factory=list)
    silenced: bool = False
    """Its connection was lost: nobody wants the rest of its sound."""
    ended: ResponseEnded | None = None
    """It is over but for the sound that fades out."""


class Scribe:
    """One conversation's."""

    def __init__(self, outbox: Outbox, playing: Callable[[], int | None]) -> None:
        """playing: the epoch that the frame being sent belongs to."""
        self.items = Items()
        self.levels = False
        self.spoken = True
        self.audio_format: Format = "audio/pcm"
        self._outbox, self._playing = outbox, playing
        self._open: str | None = None  # id of the user item that is open
        self._late: str | None = None  # id of one that is over, whose words may still come
        self._interim = ""
        self._onset = 0
        self._answer: _Answer | None = None
        self._by_client = False  # the client cancelled

    @property
    def responding(self) -> str | None:
        """Id of the response that the client knows to be under way."""
        return self._answer.id if self._answer is not None and self._answer.ended is None else None

    # -- what the client asks -----------------------------------------------------------------------------------------------------

    def asked(self, epoch: int, spoken: bool, audio_format: Format, metadata: Any = None) -> None:
        """The client asked for a response, and this is it."""
        self._open_answer(epoch, spoken, audio_format, metadata)

    def cancelled(self) -> None:
        """What ends next was ended by the client."""
        self._by_client = True

    def lost(self) -> None:
        """The connection is lost; the sound of the present response ends here, whoever comes back."""
        if self._answer is not None:
            self._answer.silenced = True

    def added(self, item: Item) -> None:
        """The client added an item."""
        fields = self.items.add(item)
        for kind in ("added", "done"):
            self._put(f"conversation.item.{kind}", **fields)

    def transcribed(self, item_id: str, text: str) -> None:
        """The words in a sound that the client added."""
        self._put(
            "conversation.item.input_audio_transcription.completed",
            item_id=item_id,
            content_index=0,
            transcript=text,
            usage={"type": "duration", "seconds": 0},
        )

    def sound(self, frame: Samples) -> None:
        """The frame that goes out now, silence included."""
        answer = self._answer
        if answer is None:
            return
        if self._playing() == answer.epoch and answer.begun and answer.spoken:
            if answer.silenced:
                return
            if answer.encoder is None:
                answer.encoder = SoundOut(answer.audio_format)
            answer.sent += len(frame)
            self._outbox.put_sound(
                {"type": "response.output_audio.delta", **self._place(answer), "delta": ""}, answer.encoder, frame
            )
        elif answer.ended is not None:
            self._close_answer(answer, answer.ended)

    def murmured(self, event: AgentBackchannel, samples: Samples) -> None:
        """The agent's backchannel, all of it at once: it is short, and belongs to no response."""
        sound = base64.b64encode(SoundOut(self.audio_format).encode(samples)).decode() if self.spoken else ""
        self._put("duologue.agent_backchannel", at_ms=_ms(event.at), text=event.text, audio=sound)

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Every event of the session, as it happens."""
        match event:
            case FloorChanged():
                self._floor(event)
            case UserStarted():
                self._onset = event.at
                self._put("duologue.voice", active=True, at_ms=_ms(event.at))
            case UserStopped():
                self._put("duologue.voice", active=False, at_ms=_ms(event.at))
            case UserTranscript():
                self._words(event)
            case SpeechLabelled():
                self._put("duologue.speech", at_ms=_ms(event.at), language=event.language, emotion=event.emotion, sound=event.sound)
            case ResponseStarted():
                self._started(event)
            case AgentTranscript():
                self._said(event.epoch, event.heard, event.text)
            case FunctionCalled():
                self._call(event)
            case ResponseEnded():
                self._ended(event)
            case SpeculationDiscarded():
                if self._answer is not None and self._answer.epoch == event.epoch:
                    reason = "client_cancelled" if self._by_client else "turn_detected"
                    self._done(self._answer, "cancelled", reason)
            case Backchannel():
                self._put("duologue.backchannel", at_ms=_ms(event.at), text=event.text)
            case Levels():
                if self.levels:
                    self._put(
                        "duologue.levels", at_ms=_ms(event.at), user_db=round(event.user_db, 1), agent_db=round(event.agent_db, 1)
                    )
            case Trouble():
                self._put("duologue.trouble", code=event.code, message=TROUBLES.get(event.code, event.message))

    def _floor(self, event: FloorChanged) -> None:
        self._put("duologue.floor", floor=event.floor, at_ms=_ms(event.at))
        if event.floor in ("user", "pause") and self._answer is not None and not self._answer.begun:
            return  # the turn that this answers goes on
        if event.floor in ("user", "pause"):
            self._begin_item()
        elif event.floor == "quiet" and self._open is not None:
            self._pending_end(event.at)

    def _begin_item(self) -> None:
        if self._open is None:
            self._open, self._late, self._interim = new_id("item"), None, ""
            self._put("input_audio_buffer.speech_started", audio_start_ms=_ms(self._onset), item_id=self._open)

    def _pending_end(self, at: int) -> None:
        """The turn held no words, or its words are still to come."""
        self._put("input_audio_buffer.speech_stopped", audio_end_ms=_ms(at), item_id=self._open)
        self._open, self._late = None, self._open

    def _words(self, event: UserTranscript) -> None:
        if not event.final:
            if self._open is not None and event.text != self._interim:
                delta = event.text[len(self._interim) :] if event.text.startswith(self._interim) else ""
                self._interim = event.text
                self._put(
                    "conversation.item.input_audio_transcription.delta",
                    item_id=self._open,
                    content_index=0,
                    delta=delta,
                    transcript=event.text,
                )
            return
        detected = self._open is not None
        item_id = self._open or self._late or new_id("item")
        self._open = self._late = None
        if detected:
            self._put("input_audio_buffer.speech_stopped", audio_end_ms=_ms(event.at), item_id=item_id)
        self._put("input_audio_buffer.committed", item_id=item_id, previous_item_id=self.items.last)
        content = [{"type": "input_audio", "transcript": event.text}]
        self.added(Item(item_id, message(item_id, "user", content), ("user", event.turn)))
        self.transcribed(item_id, event.text)

    # -- responses ----------------------------------------------------------------------------------------------------------------

    def _started(self, event: ResponseStarted) -> None:
        answer = self._answer
        if answer is None or answer.epoch != event.epoch:
            answer = self._open_answer(event.epoch)
        self._begin_message(answer)
        latency = None if event.latency_s is None else round(1000 * event.latency_s)
        self._put("duologue.latency", response_id=answer.id, item_id=answer.item_id, response_ms=latency)

    def _said(self, epoch: int, heard: str, text: str, final: bool = False) -> None:
        answer = self._answer
        if answer is None or answer.epoch != epoch or not answer.begun:
            return
        if len(text) > len(answer.text):
            delta, answer.text = text[len(answer.text) :], text
            kind = "response.output_audio_transcript.delta" if answer.spoken else "response.output_text.delta"
            self._put(kind, **self._place(answer), delta=delta)
        self._put("duologue.heard", response_id=answer.id, item_id=answer.item_id, heard=heard, text=text, final=final)

    def _call(self, event: FunctionCalled) -> None:
        answer = self._answer
        if answer is None or answer.epoch != event.epoch:
            answer = self._open_answer(event.epoch)
        item_id = new_id("item")
        body = function_call(item_id, event.call_id, event.name, event.arguments)
        place = {"response_id": answer.id, "item_id": item_id, "output_index": len(answer.output) + int(answer.begun)}
        self._put(
            "response.output_item.added",
            response_id=answer.id,
            output_index=place["output_index"],
            item={**body, "status": "in_progress", "arguments": ""},
        )
        fields = self.items.add(Item(item_id, body, ("call", event.call_id), event.epoch))
        self._put("conversation.item.added", **fields)
        call = {**place, "call_id": event.call_id, "name": event.name}
        self._put("response.function_call_arguments.delta", **call, delta=event.arguments)
        self._put("response.function_call_arguments.done", **call, arguments=event.arguments)
        self._put("response.output_item.done", response_id=answer.id, output_index=place["output_index"], item=body)
        self._put("conversation.item.done", **fields)
        answer.output.append(body)

    def _ended(self, event: ResponseEnded) -> None:
        if event.reason == "interrupted":
            self._begin_item()  # the user has the floor now
        answer = self._answer
        if answer is None or answer.epoch != event.epoch:
            if event.reason == "failed":
                self._done(self._open_answer(event.epoch), "failed", None)
            return
        self._said(event.epoch, event.heard, event.text, final=True)
        if event.stop_latency_s is not None:
            stop_ms = round(1000 * event.stop_latency_s)
            self._put("duologue.latency", response_id=answer.id, item_id=answer.item_id, stop_ms=stop_ms)
        answer.ended = event
        if self._playing() != answer.epoch or event.reason in ("completed", "failed"):
            self._close_answer(answer, event)

    def _open_answer(
        self, epoch: int, spoken: bool | None = None, audio_format: Format | None = None, metadata: Any = None
    ) -> _Answer:
        """spoken, audio_format: None for the session's."""
        if self._answer is not None and self._answer.ended is not None:
            self._close_answer(self._answer, self._answer.ended)
        self._by_client = False
        spoken, audio_format = self.spoken if spoken is None else spoken, audio_format or self.audio_format
        answer = self._answer = _Answer(epoch, new_id("resp"), new_id("item"), spoken, metadata, audio_format=audio_format)
        self._put("response.created", response=self._body(answer, "in_progress", None))
        return answer

    def _begin_message(self, answer: _Answer) -> None:
        answer.begun = True
        body = message(answer.item_id, "assistant", [], "in_progress")
        self._put("response.output_item.added", response_id=answer.id, output_index=0, item=body)
        fields = self.items.add(Item(answer.item_id, body, ("agent", answer.epoch), answer.epoch))
        self._put("conversation.item.added", **fields)
        part = {"type": "audio", "transcript": ""} if answer.spoken else {"type": "text", "text": ""}
        self._put("response.content_part.added", **self._place(answer), part=part)

    def _close_answer(self, answer: _Answer, event: ResponseEnded) -> None:
        calls = answer.output
        status = {"completed": "incomplete" if event.cut_short else "completed", "failed": "failed"}.get(event.reason, "cancelled")
        if answer.begun:
            if answer.spoken:
                self._put("response.output_audio.done", **self._place(answer))
                self._put("response.output_audio_transcript.done", **self._place(answer), transcript=answer.text)
                part = {"type": "audio", "transcript": answer.text}
                kept = {"type": "output_audio", "transcript": answer.text}
            else:
                self._put("response.output_text.done", **self._place(answer), text=answer.text)
                part = {"type": "text", "text": answer.text}
                kept = {"type": "output_text", "text": answer.text}
            self._put("response.content_part.done", **self._place(answer), part=part)
            body = message(answer.item_id, "assistant", [kept], "completed" if status == "completed" else "incomplete")
            if (item := self.items.get(answer.item_id)) is not None:
                item.body = body
            self._put("response.output_item.done", response_id=answer.id, output_index=0, item=body)
            self._put("conversation.item.done", previous_item_id=None, item=body)
            answer.output = [body, *calls]
        reason = {"incomplete": "max_output_tokens", "cancelled": "client_cancelled"}.get(status)
        if event.reason == "interrupted":
            reason = "turn_detected"
        self._done(answer, status, reason)

    def _done(self, answer: _Answer, status: str, reason: str | None) -> None:
        self._answer, self._by_client = None, False
        self._put("response.done", response=self._body(answer, status, reason))

    def _body(self, answer: _Answer, status: str, reason: str | None) -> dict[str, Any]:
        kind = status if status in ("cancelled", "incomplete", "failed") else None
        details: dict[str, Any] | None = None if kind is None else {"type": kind, "reason": reason}
        if status == "failed":
            details = {"type": "failed", "error": {"type": "server_error", "code": "response_failed"}}
        return {
            "id": answer.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": answer.output,
            "output_modalities": ["audio" if answer.spoken else "text"],
            "metadata": answer.metadata,
            "usage": None,
        }

    def audio_ms(self, item_id: str) -> float | None:
        """How much sound was sent for the item of the open response, in ms; None for another one."""
        answer = self._answer
        return None if answer is None or answer.item_id != item_id else 1000 * answer.sent / AGENT_RATE_HZ

    def _place(self, answer: _Answer) -> dict[str, Any]:
        return {"response_id": answer.id, "item_id": answer.item_id, "output_index": 0, "content_index": 0}

    def _put(self, kind: str, **fields: Any) -> None:
        self._outbox.put({"type": kind, **fields})


def _ms(at: int) -> int:
    return round(1000 * seconds(at))
