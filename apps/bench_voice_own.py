"""The agent's own voice, taken apart: what each of its networks loses, with everything before it perfect.

Notable: the first rows are given the teacher's own codes, so they say what the tokenizer and the flow cost; only the last ones also choose
the codes. Without trained weights a row is left out, and a note says so.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import decoders
from agent.chat import Chat
from agent.parts import Parts
from agent.read_along import read_along
from apps.bench_voice_rows import Row, Teacher, fingerprint, text_seed
from apps.bench_voice_stream import chunked
from apps.bench_voice_texts import HeldOut
from decoders import flow_voice
from decoders.edge_voice import EdgeVoice
from decoders.speech_tokenizer import RATIO, SpeechTokenizer, digits_to_index
from decoders.vits import VITS_RATE_HZ
from decoders.voice import Voice
from duplex.audio import AGENT_RATE_HZ, Samples

FOLDER = Path(decoders.__file__).parent
WEIGHTS = FOLDER / "weights"
STEPS = (1, 2, 4)
SPEAKS = (
    *("edge_voice.py", "pointer_speech.py", "pointer_lm.py", "pointer_lm_*.py", "reading.py", "word_window.py", "token2wav.py"),
    *("flow.py", "flow_encoder.py", "flow_estimator.py", "flow_streaming.py", "flow_graph.py", "flow_voice.py"),
    *("latent_vocoder.py", "hifigan_stream.py", "sound_shaping.py", "phonemes.py", "normalize.py", "readings.py", "numbers_en.py"),
)
"""Sources that the own voice's sound depends on."""
GROUP = 5  # LLM tokens that the voice is given together


def code_rows(teacher: Teacher, folder: Path = WEIGHTS) -> tuple[list[Row], list[str]]:
    """Rows that are given the teacher's codes: (rows, what is missing). Raises WeightsError for a damaged file."""
    tokenizer_file, flow_file = folder / "tokenizer.safetensors", folder / "flow.safetensors"
    if not tokenizer_file.is_file():
        return [], ["No speech tokenizer has been trained yet, so the rows of resynthesis are left out."]
    tokenizer = SpeechTokenizer.load(tokenizer_file)
    sources = [FOLDER / name for name in ("speech_tokenizer.py", "flow.py", "flow_voice.py", "reading.py", "vits.py")]

    def row(name: str, latents: Callable[[torch.Tensor], torch.Tensor], *files: Path) -> Row:
        def speak(text: HeldOut, seed: int) -> Samples:
            digits = teacher_codes(teacher, tokenizer, text, text_seed(text, seed))
            if not len(digits):
                return np.zeros(0, np.float32)
            with torch.inference_mode():
                return teacher.render(np.asarray(latents(digits).numpy(), np.float32))

        return Row(name, speak, VITS_RATE_HZ, fingerprint([*sources, *files], name))

    rows = [row("codes, resynthesis", lambda digits: tokenizer.decode(digits[None])[0].T, tokenizer_file)]
    if not flow_file.is_file():
        return rows, ["No flow has been trained yet, so its rows are left out."]
    made = flow_voice.load(flow_file)

    def flowing(steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def latents(digits: torch.Tensor) -> torch.Tensor:
            state = made.flow.open(torch.zeros(0, dtype=torch.int64), torch.zeros(0, flow_voice.CHANNELS), steps=steps)
            frames = made.flow.step(state, digits_to_index(digits), final=True)  # [M, t]
            return made.mean[:, None] + made.deviation[:, None] * frames

        return latents

    for steps in STEPS:
        rows.append(row(f"codes, flow {steps} step{'s' if steps > 1 else ''}", flowing(steps), tokenizer_file, flow_file))
    return rows, []


def teacher_codes(teacher: Teacher, tokenizer: SpeechTokenizer, text: HeldOut, seed: int) -> torch.Tensor:
    """[c, 5] uint8: the teacher's latents of a text as codes; each sentence is held up to a whole number of codes."""
    held = [np.zeros((flow_voice.CHANNELS, 0), np.float32)]
    for latents, _ in teacher.sentences(text.text, seed):
        held.append(np.pad(latents, ((0, 0), (0, -latents.shape[1] % RATIO)), mode="edge"))
    whole = np.concatenate(held, axis=1)
    if not whole.shape[1]:
        return torch.zeros(0, 5, dtype=torch.uint8)
    return tokenizer.encode(torch.from_numpy(whole.T.copy())[None])[0]


def thoughts(parts: Parts, system_prompt: str, text: HeldOut) -> tuple[list[int], NDArray[np.float32]]:
    """A text as the LLM would write it in answer to its question: tokens [n], and the state [n, d] that each is sampled from."""
    assert isinstance(parts.thinker, Chat)
    return read_along(parts.thinker, system_prompt, text.text, text.question)


def own_voice(parts: Parts) -> tuple[EdgeVoice | None, str]:
    """The profile's own voice; or None, and why it is left out."""
    if isinstance(parts.voice, EdgeVoice):
        return parts.voice, ""
    return None, "The profile does not speak with the voice that is trained here (output: projector), so its rows are left out."


def voice_rows(voice: EdgeVoice, parts: Parts, system_prompt: str, folder: Path = WEIGHTS) -> list[Row]:
    """The own voice with and without hidden states, streamed as in a session; the way in which the profile speaks comes last."""
    sources = [path for pattern in SPEAKS for path in sorted(FOLDER.glob(pattern))]
    sources += [path for name in ("flow", "voice_lm") if (path := folder / f"{name}.safetensors").is_file()]
    told = copy.copy(voice)
    told.config = replace(voice.config, hidden_states=True)  # whichever the profile speaks with, both are judged
    settings = told.config, voice.speech.decoder.config, voice.token2wav.config, system_prompt
    ways = sorted((("own voice, text alone", False), ("own voice", True)), key=lambda way: way[1] == voice.config.hidden_states)
    return [
        voice_row(name, told, parts, system_prompt, hidden=hidden, print_of=fingerprint(sources, name, settings))
        for name, hidden in ways
    ]


def voice_row(name: str, voice: Voice, parts: Parts, system_prompt: str, *, hidden: bool, print_of: str) -> Row:
    """A streaming voice as a row; it is given tokens in groups of five, with the LLM's states or without."""
    alone = threading.Lock()

    def speak(text: HeldOut, seed: int) -> Samples:
        with alone:  # neither the LLM nor the voice may be used by two threads at once
            tokens, states = thoughts(parts, system_prompt, text) if hidden else (parts.thinker.encode(text.text), None)
            sound, _ = chunked(voice, (tokens, states), GROUP, text_seed(text, seed) % 2**31)
        return sound

    return Row(name, speak, AGENT_RATE_HZ, print_of)
