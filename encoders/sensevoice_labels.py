"""The four labels that SenseVoice writes before the text: language, emotion, sound event, and whether the text is normalised.

Notable: each label is the likeliest of its own kind, not of the whole vocabulary, so there is always one, and the chance that nobody
speaks is the share of `nospeech` at the language position. Names are lower case ("zh", "happy", "laughter"); what the model calls
unknown is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.ears import SpeechLabels
from encoders.sensevoice_pieces import Pieces

OFFICIAL_SIZE = 25055
OFFICIAL_IDS = {
    24884: "zh",
    24885: "en",
    24888: "yue",
    24892: "ja",
    24896: "ko",
    24992: "nospeech",
    25001: "happy",
    25002: "sad",
    25003: "angry",
    25004: "neutral",
    25009: "emo_unknown",
    25016: "withitn",
    25017: "woitn",
}
"""Labels of the official vocabulary that are known by number; the others are found by their names."""
NO_SPEECH = "nospeech"
LANGUAGES = ("zh", "en", "yue", "ja", "ko", NO_SPEECH)
EMOTIONS = ("happy", "sad", "angry", "neutral", "fearful", "disgusted", "surprised", "emo_unknown")
EVENTS = ("speech", "bgm", "applause", "laughter", "cry", "sneeze", "breath", "cough", "sing", "speech_noise", "event_unk")
FORMS = ("withitn", "woitn")
_UNKNOWN = (NO_SPEECH, "emo_unknown", "event_unk")


@dataclass(frozen=True, slots=True)
class RichLabels(SpeechLabels):
    """What SenseVoice says: `language`, `emotion` and `event` are None or one of LANGUAGES, EMOTIONS and EVENTS above."""

    itn: bool = False
    """Whether the text has punctuation and written numbers."""


class LabelReader:
    """Reads labels off the first four positions of the CTC head. Immutable."""

    def __init__(self, pieces: Pieces) -> None:
        named = {i: name.lower() for i in range(pieces.size) if (name := pieces.label(i))}
        if pieces.size == OFFICIAL_SIZE:
            named |= OFFICIAL_IDS
        self._kinds = [{i: name for i, name in named.items() if name in kind} for kind in (LANGUAGES, EMOTIONS, EVENTS, FORMS)]

    def __call__(self, logits: Tensor) -> tuple[RichLabels, float]:
        """[4, V] logits of the label positions -> the labels, and the probability in [0, 1] that nobody speaks."""
        shares = logits.float().softmax(dim=-1).cpu()  # [4, V]
        language, emotion, event, form = (_likeliest(row, kind) for row, kind in zip(shares, self._kinds, strict=True))
        silent = sum(float(shares[0, i]) for i, name in self._kinds[0].items() if name == NO_SPEECH)
        return RichLabels(language, emotion, event, form == FORMS[0]), min(1.0, silent)


def _likeliest(shares: Tensor, kind: dict[int, str]) -> str | None:
    """The name with the largest share; None when that says "unknown", or when the vocabulary has no such labels."""
    if not kind:
        return None
    ids = list(kind)
    name = kind[ids[int(shares[torch.tensor(ids)].argmax())]]
    return None if name in _UNKNOWN else name
