"""What the ears say of the user's speech besides its words, as an event of the conversation."""

from __future__ import annotations

from duplex.events import SpeechLabelled
from encoders.ears import Transcript


def labelled(transcript: Transcript, before: SpeechLabelled | None = None) -> SpeechLabelled | None:
    """The event for a transcript whose ears label speech, such as SenseVoice's; None when they do not, or when `before` said the same."""
    labels = transcript.labels
    if labels is None:
        return None
    said = SpeechLabelled(transcript.end, labels.language, labels.emotion, labels.event)
    if before is not None and (before.language, before.emotion, before.sound) == (said.language, said.emotion, said.sound):
        return None
    return said
