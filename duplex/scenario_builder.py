"""Building conversations out of a stock of speech: who says what when, in which room, with what noise; and the label of every tick.

duplex.scenario says what they are made of and what the labels mean.

Notable: a pause and the silence after a turn's end are drawn alike, so that only what was said and how it was said tells them apart. Both
last as long (`silence`), follow a stretch of speech as long (`_choose` picks the sentences for it), come as often after the first, second
or third stretch, break off with the same fade, and lie in the same room at the same level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from duplex import scenario_sounds as sounds
from duplex.audio import TICK, USER_RATE_HZ, Samples, user_samples
from duplex.resample import resample
from duplex.scenario import KEEP, RESPOND, WAIT, YIELD, Event, Kind, Scenario, ScenarioConfig, Stock, Utterance


def silence(config: ScenarioConfig, rng: np.random.Generator) -> int:
    """The length of a pause, or of the silence after a turn, in samples: one distribution for both."""
    return user_samples(_even(config.silence_s, rng))


def _even(between: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(between[0]), np.log(between[1]))))


def trim(samples: Samples) -> Samples:
    """[n] without the quiet at both ends (40 dB below the loudest 10 ms)."""
    count = len(samples) // 160
    if count == 0:
        return samples
    power = np.square(samples[: count * 160]).reshape(count, 160).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 1e-4)
    return samples[loud[0] * 160 : (loud[-1] + 1) * 160]


def _level(samples: Samples) -> float:
    """RMS of the voiced part."""
    loud = samples[np.abs(samples) > 0.05 * max(float(np.abs(samples).max()), 1e-6)]
    return float(np.sqrt(np.mean(np.square(loud)))) if len(loud) else 1e-6


def _choose(
    stock: Sequence[Utterance], voice: str, pauses: int, config: ScenarioConfig, rng: np.random.Generator
) -> tuple[Utterance, list[int]]:
    """A sentence of this voice and which of its places to hold as pauses, so that each stretch lasts about as long as was drawn."""
    mine = [u for u in stock if u.voice == voice]
    able = [u for u in mine if len(u.places) > pauses] or mine
    wanted = [_even(config.stretch_s, rng) for _ in range(pauses + 1)]
    best: tuple[float, Utterance, list[int]] | None = None
    for index in rng.integers(0, len(able), 48):
        utterance = able[index]
        inner = len(utterance.places) - 1
        held = sorted(rng.choice(inner, min(pauses, inner), replace=False).tolist()) if inner and pauses else []
        edges = [0, *(utterance.places[h] for h in held), len(utterance.samples)]
        lengths = np.diff(edges) / USER_RATE_HZ
        cost = float(np.abs(np.log(np.maximum(lengths, 0.05) / wanted[: len(lengths)])).sum())
        if best is None or cost < best[0]:
            best = cost, utterance, held
    assert best is not None
    return best[1], best[2]


@dataclass(slots=True)
class _Tracks:
    """A scenario in the making."""

    user: list[tuple[int, Samples]] = field(default_factory=list)
    far: list[tuple[int, Samples]] = field(default_factory=list)  # other voices and sounds, with a level of their own
    agent: list[tuple[int, Samples]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # the agent's speech
    events: list[Event] = field(default_factory=list)
    respond: list[tuple[int, int]] = field(default_factory=list)
    yields: list[tuple[int, int]] = field(default_factory=list)
    keeps: list[tuple[int, int]] = field(default_factory=list)
    now: int = 0


class Builder:
    """Builds scenarios; the same seed gives the same scenario."""

    def __init__(self, stock: Stock, config: ScenarioConfig | None = None) -> None:
        self.stock, self.config = stock, config or ScenarioConfig()

    def conversation(self, seed: int) -> Scenario:
        """Some exchanges, with something or nothing over each answer; 10 to 40 s."""
        rng = np.random.default_rng(seed)
        tracks, voice = _Tracks(), self._voice(rng)
        tracks.now = user_samples(rng.uniform(0.4, 1.2))
        for _ in range(self.config.exchanges):
            if rng.random() < 0.15:
                self._noise(tracks, tracks.now, rng)
                tracks.now += user_samples(rng.uniform(0.8, 1.6))
            self._turn(tracks, voice, self.stock.utterances, draw_pauses(rng), rng)
            over = rng.choice(("nothing", "interruption", "backchannel", "noise", "side_talk"), p=(0.15, 0.35, 0.25, 0.15, 0.1))
            while self._answer(tracks, voice, str(over), rng):
                over = rng.choice(("nothing", "backchannel", "interruption"), p=(0.5, 0.3, 0.2))
            tracks.now += user_samples(_even((0.3, 2.0), rng))
        return self._mix(tracks, voice, rng)

    def turn(self, seed: int, pauses: int, after_s: float = 3.5) -> Scenario:
        """One turn with so many pauses and nobody's answer: for measuring when a system would have spoken."""
        rng = np.random.default_rng(seed)
        tracks, voice = _Tracks(), self._voice(rng)
        tracks.now = user_samples(0.8)
        self._turn(tracks, voice, self.stock.utterances, pauses, rng)
        end = tracks.now
        tracks.now += user_samples(after_s)
        tracks.respond.append((end, tracks.now))
        return self._mix(tracks, voice, rng)

    def overlap(self, seed: int, kind: Kind) -> Scenario:
        """The agent speaks for 7 to 9 s, and one thing happens over its voice; it does not stop by itself."""
        rng = np.random.default_rng(seed)
        tracks, voice = _Tracks(), self._voice(rng)
        tracks.now = user_samples(0.8)
        start, at = tracks.now, tracks.now + user_samples(rng.uniform(1.5, 3.5))
        end = self._over(tracks, voice, kind, at, rng)
        stop = max(end + user_samples(2.0), start + user_samples(7.0))
        self._agent(tracks, start, stop, rng)
        if kind == "interruption":
            tracks.yields.append((at, stop))
        else:
            tracks.keeps.append((at, end + user_samples(0.5)))
        tracks.now = stop
        return self._mix(tracks, voice, rng)

    # -- what happens

    def _voice(self, rng: np.random.Generator) -> str:
        return str(rng.choice(self.stock.voices()))

    def _turn(self, tracks: _Tracks, voice: str, stock: Sequence[Utterance], pauses: int, rng: np.random.Generator) -> None:
        """The user's turn from `now` on, with its pauses; `now` becomes its end. A turn of many pauses is made of several sentences."""
        start = tracks.now
        leads = [u for u in self.stock.leads if u.voice == voice]
        if leads and pauses and rng.random() < 0.3:
            lead = trim(leads[rng.integers(len(leads))].samples)
            tracks.user.append((tracks.now, lead))
            tracks.now += len(lead) + user_samples(rng.uniform(0.05, 0.15))
        while True:
            here = min(pauses, 2)
            utterance, held = _choose(stock, voice, here, self.config, rng)
            pauses -= max(len(held), 1) if pauses else 0
            edges = [0, *(utterance.places[h] for h in held), len(utterance.samples)]
            for part, (a, b) in enumerate(pairwise(edges)):
                piece = _ended(trim(utterance.samples[a:b]), rng)
                tracks.user.append((tracks.now, piece))
                tracks.now += len(piece)
                place = held[part] if part < len(held) else len(utterance.places) - 1
                said = utterance.said[place]
                if part < len(held):
                    length = silence(self.config, rng)
                    tracks.events.append(Event("pause", tracks.now, tracks.now + length, said, utterance.whole[place]))
                    tracks.now += length
            if pauses <= 0:
                break
            tracks.now += user_samples(rng.uniform(0.03, 0.12))
        tracks.events.append(Event("turn", start, tracks.now, said))

    def _answer(self, tracks: _Tracks, voice: str, over: str, rng: np.random.Generator) -> bool:
        """The agent takes the floor after a turn; something happens over its voice. True when the user took the floor back."""
        end = tracks.now
        start = end + silence(self.config, rng)
        tracks.respond.append((end, start))
        if over == "nothing":
            stop = start + user_samples(rng.uniform(1.5, 4.0))
            self._agent(tracks, start, stop, rng)
            tracks.now = stop
            return False
        at = start + user_samples(rng.uniform(0.05, 0.5) if rng.random() < 0.25 else rng.uniform(0.5, 3.5))
        if over == "interruption":
            stop = at + user_samples(rng.uniform(0.25, 1.4))
            self._agent(tracks, start, stop, rng)
            tracks.yields.append((at, stop))
            tracks.now = at
            ownwords = rng.random() < 0.6
            self._turn(
                tracks,
                voice,
                self.stock.interruptions if ownwords else self.stock.utterances,
                0 if ownwords else draw_pauses(rng),
                rng,
            )
            event = tracks.events[-1]
            tracks.events.append(replace(event, kind="interruption", start=at))
            tracks.now = max(tracks.now, stop)
            return True
        done = self._over(tracks, voice, over, at, rng)
        stop = done + user_samples(rng.uniform(0.6, 2.5))
        tracks.keeps.append((at, min(done + user_samples(0.5), stop)))
        self._agent(tracks, start, stop, rng)
        tracks.now = stop
        return False

    def _over(self, tracks: _Tracks, voice: str, kind: str, at: int, rng: np.random.Generator) -> int:
        """Put something over the agent's voice at `at`; returns where it ends."""
        if kind == "noise":
            return self._noise(tracks, at, rng)
        if kind == "interruption":
            tracks.now = at
            self._turn(tracks, voice, self.stock.interruptions, 0, rng)
            tracks.events.append(replace(tracks.events[-1], kind="interruption", start=at))
            return tracks.now
        if kind == "backchannel":
            own = [u for u in self.stock.backchannels if u.voice == voice]
            said = own[rng.integers(len(own))]
            piece = _ended(trim(said.samples), rng) * np.float32(10 ** (rng.uniform(-8, 0) / 20))
            tracks.user.append((at, piece))
            tracks.events.append(Event("backchannel", at, at + len(piece), said.said[-1]))
            return at + len(piece)
        others = [u for u in self.stock.utterances if u.voice != voice] or self.stock.utterances
        talk = others[rng.integers(len(others))]
        piece = trim(talk.samples) / np.float32(_level(talk.samples)) * np.float32(10 ** (rng.uniform(-20, -10) / 20))
        tracks.far.append((at, sounds.convolve(piece, sounds.room(rng))))
        tracks.events.append(Event("side_talk", at, at + len(piece), talk.said[-1]))
        return at + len(piece)

    def _noise(self, tracks: _Tracks, at: int, rng: np.random.Generator) -> int:
        made = sounds.sound(str(rng.choice(sounds.KINDS)), rng)
        made = made / np.float32(_level(made)) * np.float32(10 ** (rng.uniform(-10, 4) / 20))
        tracks.far.append((at, made))
        tracks.events.append(Event("noise", at, at + len(made)))
        return at + len(made)

    def _agent(self, tracks: _Tracks, start: int, stop: int, rng: np.random.Generator) -> None:
        """The agent speaks from `start` to `stop`, sentence after sentence."""
        tracks.spans.append((start, stop))
        at = start
        while at < stop:
            utterance = self.stock.utterances[rng.integers(len(self.stock.utterances))]
            piece = trim(utterance.samples)[: stop - at]
            tracks.agent.append((at, piece / np.float32(_level(piece)) * np.float32(0.1)))
            at += len(piece) + user_samples(0.2)

    # -- sound

    def _mix(self, tracks: _Tracks, voice: str, rng: np.random.Generator) -> Scenario:
        c = self.config
        total = -(-(tracks.now + user_samples(0.5)) // TICK) * TICK
        near, far, agent = (_lay(parts, total) for parts in (tracks.user, tracks.far, tracks.agent))
        own = near / np.float32(_level(near) if tracks.user else 1.0)
        user = own + far
        if not c.clean:
            if rng.random() < 0.7:
                user = sounds.convolve(user, sounds.room(rng))
            if rng.random() < 0.8:
                user = user + sounds.noise(total, rng) * np.float32(10 ** (-_uniform(c.noise_db, rng) / 20))
            if rng.random() < 0.35:
                residue = sounds.convolve(agent, sounds.room(rng)) * np.float32(10 * 10 ** (rng.uniform(-40, -18) / 20))
                user = user + residue
        level = 10 ** (_uniform(c.level_db, rng) / 20) if not c.clean else 0.07
        user = np.clip(user * np.float32(level), -1, 1)
        if not c.clean and rng.random() < 0.2:
            user = sounds.telephone(user)
        scenario = Scenario(user, agent, *self._label(tracks, total), tuple(sorted(tracks.events, key=lambda e: e.start)))
        return scenario if c.clean else _at_tempo(scenario, _uniform(c.tempo, rng))

    def _label(self, tracks: _Tracks, total: int) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
        at = (np.arange(total // TICK) + 1) * TICK
        speaking = np.zeros(len(at), bool)
        labels = np.zeros(len(at), np.int8)
        for start, stop in tracks.spans:
            speaking |= (at > start) & (at <= stop)
        for spans, label in ((tracks.respond, RESPOND), (tracks.keeps, KEEP), (tracks.yields, YIELD)):
            for start, stop in spans:
                labels[(at > start) & (at <= stop)] = label
        labels[speaking & (labels == RESPOND)] = WAIT
        labels[~speaking & (labels >= YIELD)] = WAIT
        return speaking, labels


def draw_pauses(rng: np.random.Generator) -> int:
    """How many pauses a turn has: after each stretch it goes on, or ends, with equal chances."""
    return min(int(rng.geometric(0.5)) - 1, 7)


def _uniform(between: tuple[float, float], rng: np.random.Generator) -> float:
    return float(rng.uniform(*between))


def _ended(piece: Samples, rng: np.random.Generator) -> Samples:
    """A stretch of speech with the fade that every stretch gets, whether it ends a turn or not."""
    length = min(user_samples(rng.uniform(0.008, 0.03)), len(piece))
    made = piece.copy()
    made[len(made) - length :] *= np.linspace(1, 0, length, dtype=np.float32)
    return made


def _lay(parts: Sequence[tuple[int, Samples]], total: int) -> Samples:
    track = np.zeros(total, np.float32)
    for at, piece in parts:
        piece = piece[: max(total - at, 0)]
        track[at : at + len(piece)] += piece
    return track


def _at_tempo(scenario: Scenario, tempo: float) -> Scenario:
    """The same scenario spoken faster and higher (above 1) or slower and lower."""
    rate = round(USER_RATE_HZ * tempo)
    if rate == USER_RATE_HZ:
        return scenario
    user = resample(scenario.user, rate, USER_RATE_HZ, "MQ")
    agent = resample(scenario.agent, rate, USER_RATE_HZ, "MQ")
    count = min(len(user), len(agent)) // TICK
    at = np.minimum(((np.arange(count) + 1) * tempo).astype(int) - 1, scenario.ticks - 1).clip(0)
    events = tuple(replace(e, start=round(e.start / tempo), end=round(e.end / tempo)) for e in scenario.events)
    return Scenario(user[: count * TICK], agent[: count * TICK], scenario.speaking[at], scenario.labels[at], events)
