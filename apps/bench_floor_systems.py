"""The systems that `duologue bench floor` compares: our predictors, and what users would otherwise build.

* silero + silence, webrtcvad + silence: the turn is over after 700 ms; half a second of voice interrupts (200 ms for webrtcvad).
* silero + smart-turn v3.2: 200 ms of silence, then the model is asked once; below 0.5 the turn is over after 3 s of silence; 200 ms of
  voice interrupts. The model file is read as data from an installed pipecat-ai, none of whose code runs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from apps.floor_listening import Known
from duplex import turn_signals as signals
from duplex.audio import TICK, Samples, seconds, user_samples
from duplex.floor_scores import OverlapRun, TurnRun, turn_span
from duplex.predictor import DuplexPredictor, TickInput
from duplex.scenario import Scenario
from duplex.turns import TurnConfig, TurnTaking
from duplex.vad import Vad, VoiceFade, VoiceStart
from encoders.mel import log_mel, normalise

SMART_TURN = "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
LEAST = -9.0  # the score while there is a voice


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a speaking agent does; positions in user samples."""

    yields_at: int | None = None
    """Where it gives up the floor; None when it speaks on."""
    quiet_at: int | None = None
    """Where its voice stopped for that; it may have held its breath before."""
    held_s: float = 0.0
    """For how long it held its breath and spoke on then."""


class System(Protocol):
    """One way to decide who has the floor."""

    @property
    def name(self) -> str:
        """What it is called in the report."""
        ...

    def turn(self, scenario: Scenario, ticks: Sequence[Known]) -> TurnRun:
        """Its decisions in a user's turn."""
        ...

    def overlap(self, scenario: Scenario, ticks: Sequence[Known]) -> Reaction:
        """What it does about a sound over its voice."""
        ...


class Predictor(DuplexPredictor, Protocol):
    """A predictor of ours, which can also tell the silence that it waits for."""

    def needed_silence_s(self, state: Any, known: TickInput) -> float:
        """Silence that ends the user's turn."""
        ...


class Ours:
    """A predictor of ours with the turn-taking core's thresholds."""

    def __init__(self, name: str, predictor: Predictor) -> None:
        self.name, self.predictor, self.limits = name, predictor, TurnConfig()

    def turn(self, scenario: Scenario, ticks: Sequence[Known]) -> TurnRun:
        """See System."""
        state = self.predictor.open()
        at, silence, score, takes = [], [], [], []
        for one in ticks:
            self.predictor.hear(state, one.heard)
            if one.known is None:
                continue
            decision = self.predictor.tick(state, one.known)
            quiet = not one.known.voiced
            at.append(one.known.at)
            silence.append(one.known.silence_s)
            score.append(-self.predictor.needed_silence_s(state, one.known) if quiet else LEAST)
            takes.append(quiet and decision.respond >= self.limits.release_p)
        return _run(scenario, at, silence, score, takes)

    def overlap(self, scenario: Scenario, ticks: Sequence[Known]) -> Reaction:
        """See System: the turn-taking core itself, told what a session would tell it."""
        state, core = self.predictor.open(), TurnTaking(self.limits)
        held_at, held = 0, 0
        for index, one in enumerate(ticks):
            self.predictor.hear(state, one.heard)
            at = (index + 1) * TICK
            if not one.heard.agent_speaking:
                continue
            if core.current is None:
                core.receive(signals.ResponseAsked(at))
                core.receive(signals.ResponseAudible(at, core.current or 0))
            given: list[signals.Signal] = [
                signals.VoiceBegan(c.at) if isinstance(c, VoiceStart) else signals.VoiceEnded(c.at)
                for c in one.changes
                if not isinstance(c, VoiceFade)
            ]
            if one.known is not None:
                given.append(signals.Ticked(at, self.predictor.tick(state, one.known)))
            for action in (action for signal in given for action in core.receive(signal)):
                if isinstance(action, signals.Hold):
                    held_at = at
                elif isinstance(action, signals.Resume):
                    held, held_at = held + (at - held_at if held_at else 0), 0
                elif isinstance(action, signals.Stop):
                    return Reaction(at, held_at or at, seconds(held))
        return Reaction(held_s=seconds(held))


Voices = Callable[[Samples], list[tuple[int, bool]]]
"""[n] user samples -> (end of the window, whether there is voice in it)."""


def silero(vad: Vad) -> Voices:
    """silero's windows of 32 ms at its usual threshold."""
    return lambda samples: [(end, p >= 0.5) for end, p in vad.feed(vad.open(), samples)]


def webrtc() -> Voices | None:
    """webrtcvad's windows of 20 ms, mode 2; None where it is not installed."""
    if importlib.util.find_spec("webrtcvad") is None:
        return None
    webrtcvad = importlib.import_module("webrtcvad")

    def voices(samples: Samples) -> list[tuple[int, bool]]:
        vad = webrtcvad.Vad(2)
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        return [(at + 320, vad.is_speech(pcm[at : at + 320].tobytes(), 16000)) for at in range(0, len(pcm) - 319, 320)]

    return voices


@dataclass(frozen=True)
class Silence:
    """So much silence ends a turn, so much voice interrupts."""

    name: str
    voices: Voices
    wait_s: float = 0.7
    voice_s: float = 0.5

    def turn(self, scenario: Scenario, ticks: Sequence[Known]) -> TurnRun:
        """See System."""
        at, silence = _silences(self.voices(scenario.user))
        return _run(scenario, at, silence, [0.0] * len(at), [s >= self.wait_s for s in silence])

    def overlap(self, scenario: Scenario, ticks: Sequence[Known]) -> Reaction:
        """See System."""
        return _long_voice(scenario, self.voices(scenario.user), self.voice_s)


class SmartTurn:
    """Pipecat's recipe."""

    name = "silero + smart-turn v3.2"

    def __init__(self, voices: Voices, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.voices = voices
        self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def complete(self, samples: Samples) -> float:
        """[n] a turn so far -> P(it is over)."""
        heard = last_seconds(samples, len(samples), 8.0)
        heard = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)
        features = normalise(log_mel(heard.astype(np.float32))).T[None]
        return float(np.ravel(self._session.run(None, {"input_features": features.astype(np.float32)})[0])[0])

    def turn(self, scenario: Scenario, ticks: Sequence[Known]) -> TurnRun:
        """See System."""
        windows = self.voices(scenario.user)
        at, silence = _silences(windows)
        begun = max(next((end for end, yes in windows if yes), 0) - user_samples(0.5), 0)
        score, p = [], LEAST
        for end, silent in zip(at, silence, strict=True):
            if silent < 0.2:
                p = LEAST
            elif p == LEAST:
                p = self.complete(scenario.user[begun:end])
            score.append(p)
        takes = [s >= 3.0 or (s >= 0.2 and p > 0.5) for s, p in zip(silence, score, strict=True)]
        return _run(scenario, at, silence, score, takes)

    def overlap(self, scenario: Scenario, ticks: Sequence[Known]) -> Reaction:
        """See System."""
        return _long_voice(scenario, self.voices(scenario.user), 0.2)


def last_seconds(samples: np.ndarray, end: int, seconds_: float) -> np.ndarray:
    """The newest samples before `end`, zeros in front of the beginning."""
    count = user_samples(seconds_)
    part = samples[max(end - count, 0) : end]
    return np.concatenate([np.zeros(count - len(part), np.float32), part])


def smart_turn_file() -> Path | None:
    """The model in an installed pipecat-ai; None where there is none."""
    try:
        file = Path(str(importlib.metadata.distribution("pipecat-ai").locate_file(SMART_TURN)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return file if file.is_file() else None


def _silences(windows: Sequence[tuple[int, bool]]) -> tuple[list[int], list[float]]:
    """Silence at the end of each window; 0 before the first voice and during one."""
    last, at, silence = -1, [], []
    for end, yes in windows:
        last = end if yes else last
        at.append(end)
        silence.append(0.0 if last < 0 else seconds(end - last))
    return at, silence


def _long_voice(scenario: Scenario, windows: Sequence[tuple[int, bool]], voice_s: float) -> Reaction:
    """Where a voice over the agent's has lasted so long, gaps of 100 ms not counting."""
    begun = last = -1
    for end, yes in windows:
        if not yes or not scenario.speaking[min(end // 1280, scenario.ticks - 1)]:
            continue
        if last < 0 or end - last > 1600:
            begun = end - 320
        last = end
        if seconds(end - begun) >= voice_s:
            return Reaction(end, end)
    return Reaction()


def _run(scenario: Scenario, at: Sequence[int], silence: Sequence[float], score: Sequence[float], takes: Sequence[bool]) -> TurnRun:
    pauses, end = turn_span(scenario)
    return TurnRun(pauses, end, np.array(at, np.int64), np.array(silence, float), np.array(score, float), np.array(takes, bool))


def overlap_run(system: System, kind: str, scenario: Scenario, ticks: Sequence[Known]) -> OverlapRun:
    """One sound over the agent's voice."""
    onset = next(event.start for event in scenario.events if event.kind == kind)
    found = system.overlap(scenario, ticks)
    yields_at, quiet_at = (None if at is None else max(at, onset) for at in (found.yields_at, found.quiet_at))
    return OverlapRun(kind, onset, yields_at, quiet_at, found.held_s)
