"""The trained predictor as the session asks for it: it hears both sides on every tick, and says how long the silence must be.

The network was taught on pauses and turn ends that last equally long, so its odds tell of what was said and how, not of how long it has
been silent. That is added here: sure ends wait `complete_s`, sure pauses `incomplete_s`, and odds in between something in between.

It can be asked together with the heads whose odds it is told (`agree: both`), for each is wrong at places of its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from duplex.checkpoint import fill, read_tensors
from duplex.errors import ConfigError, WeightsError
from duplex.predictor import RuleConfig, RulePredictor, TickDecision, TickInput, going_on, in_between
from duplex.predictor_features import FeatureState, Heard, log_odds, sound_features, state_features
from duplex.predictor_net import FloorNet, NetConfig, NetState
from duplex.scenario import KEEP, RESPOND, YIELD

WEIGHTS = Path(__file__).parent / "weights" / "predictor.safetensors"
"""The shipped weights; the model card lies beside them."""


@dataclass(frozen=True)
class TrainedConfig:
    """How the network's odds become decisions."""

    speculate_s: float = 0.16
    """Silence after which a response is prepared, unless the turn plainly goes on."""
    complete_s: float = 0.24
    """Silence that ends a turn whose end is sure."""
    incomplete_s: float = 2.0
    """Silence that ends a turn of which the network is sure that it goes on."""
    agree: Literal["net", "both"] = "net"
    """Who must think that a turn is over: the network, or besides it those by whom it is told what words and recogniser say."""
    unread: float = 0.5
    """both: how far an end is believed, at most, while the words are not there or the LLM has not read them."""
    surely: float | None = None
    """Log odds from which an end is sure; None: as the weights' file says, which was found for the network alone."""
    hardly: float | None = None
    """Log odds up to which it is sure that the turn goes on; likewise."""
    newest: int = 2
    """Ticks of the silence whose odds are averaged."""
    overlaps: Literal["rules", "net"] = "rules"
    """Who judges sounds over the agent's voice."""
    takeover_p: float = 0.75
    """P(the user takes the floor), of those sounds that could, from which the agent yields while the sound goes on."""
    least_s: float = 0.16
    """A sound over the agent's voice is not judged before it lasts so long."""
    settle_s: float = 0.12
    """Silence after which a sound over the agent's voice is judged as a whole."""

    def __post_init__(self) -> None:
        if not 0 < self.speculate_s <= self.complete_s <= self.incomplete_s:
            raise ConfigError("predictor: speculate_s, complete_s and incomplete_s must be positive and rise in this order.")
        if self.surely is not None and self.hardly is not None and self.surely <= self.hardly:
            raise ConfigError("predictor: surely must be above hardly.")
        if self.newest < 1 or not 0 < self.takeover_p < 1 or not 0 <= self.unread <= 1:
            raise ConfigError("predictor: newest must be at least 1, takeover_p lie between 0 and 1, and unread be in 0 to 1.")


@dataclass(slots=True)
class TrainedState:
    """One conversation."""

    features: FeatureState
    net: NetState
    odds: list[float] = field(default_factory=list)
    """log odds of the turn's end on the newest ticks of this silence."""
    taken: float = 0.5
    """P(the user takes the floor) on the newest tick, of those sounds that could."""


class TrainedPredictor:
    """`duplex.predictor.DuplexPredictor` with weights. Holds no conversation; threads may share it."""

    def __init__(
        self,
        net: FloorNet,
        surely: float = 2.0,
        hardly: float = -2.0,
        config: TrainedConfig | None = None,
        rules: RuleConfig | None = None,
    ) -> None:
        """surely, hardly: log odds of a turn's end from which it is sure, and up to which it is sure that the turn goes on.

        rules: for sounds over the agent's voice, where they are left to the rules.
        """
        self.config = config or TrainedConfig()
        self.rules = RulePredictor(rules)
        self.net = net.eval().requires_grad_(False)
        surely = surely if self.config.surely is None else self.config.surely
        self.hardly = hardly if self.config.hardly is None else self.config.hardly
        self.surely = max(surely, self.hardly + 1e-3)

    @classmethod
    def load(cls, file: Path = WEIGHTS, config: TrainedConfig | None = None, rules: RuleConfig | None = None) -> TrainedPredictor:
        """From what `save` wrote. Raises WeightsError."""
        from safetensors import SafetensorError, safe_open

        tensors = read_tensors(file)
        try:
            with safe_open(file, "pt") as opened:
                told = json.loads((opened.metadata() or {})["predictor"])
            net = FloorNet(NetConfig(**told["net"]))
            surely, hardly = float(told["surely"]), float(told["hardly"])
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise WeightsError(f"{file} does not say what shape of predictor it holds ({error}); train it again.") from error
        fill(net, tensors, file, "the duplex predictor", torch.float32)
        return cls(net, surely, hardly, config, rules)

    def save(self, file: Path) -> None:
        """fp16 safetensors with the shape and the two odds in its header. Raises OSError."""
        from safetensors.torch import save_file

        told = {"net": asdict(self.net.config), "surely": self.surely, "hardly": self.hardly}
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.half().contiguous() for name, value in self.net.state_dict().items()}
        save_file(tensors, file, {"predictor": json.dumps(told)})

    def open(self) -> TrainedState:
        """A fresh state for one conversation, about 130 kB."""
        return TrainedState(FeatureState(), self.net.open())

    def hear(self, state: TrainedState, heard: Heard) -> None:
        """Take the newest tick of both sides; to be called on every tick, whoever speaks."""
        mel, sound = sound_features(state.features, heard.sound)
        beside = torch.cat([torch.from_numpy(sound[0]), torch.from_numpy(state_features(state.features, heard))])
        with torch.inference_mode():
            p = torch.softmax(self.net(state.net, torch.from_numpy(mel)[None], beside[None, None])[0, 0].double(), -1)
        respond, yields, keeps = float(p[RESPOND]), float(p[YIELD]), float(p[KEEP])
        if heard.voiced or heard.agent_speaking:
            state.odds.clear()
        else:
            state.odds.append(log_odds(respond))
            del state.odds[: -self.config.newest]
        state.taken = yields / max(yields + keeps, 1e-9)

    def tick(self, state: TrainedState, known: TickInput) -> TickDecision:
        """One decision, from what was heard up to now."""
        if not known.agent_speaking:
            return self._after_user(state, known)
        return self._over_agent(state, known) if self.config.overlaps == "net" else self.rules.tick(None, known)

    def needed_silence_s(self, state: TrainedState, known: TickInput) -> float:
        """Silence that ends the user's turn, by what was heard of it."""
        c = self.config
        if not state.odds:
            return c.incomplete_s
        odds, read = sum(state.odds) / len(state.odds), known.transcript_fresh and known.sentence_ends is not None
        if c.agree == "both" and read:
            odds = min(odds, log_odds(known.sentence_ends or 0.0))
        whole = min(max((odds - self.hardly) / (self.surely - self.hardly), 0.0), 1.0)
        if c.agree == "both" and not read:
            whole = min(whole, c.unread)
        return in_between(whole, c.complete_s, c.incomplete_s)

    def _after_user(self, state: TrainedState, known: TickInput) -> TickDecision:
        c = self.config
        if known.voiced:
            return TickDecision()
        needed, silence = self.needed_silence_s(state, known), known.silence_s
        goes_on = going_on(known, needed, c.complete_s, c.incomplete_s)
        prepare = c.speculate_s if needed < 0.7 * c.incomplete_s else needed / 2
        if silence < prepare:
            return TickDecision(respond=0.49 * silence / prepare, goes_on=goes_on)
        return TickDecision(respond=min(1.0, 0.5 + 0.3 * (silence - prepare) / max(needed - prepare, 1e-6)), goes_on=goes_on)

    def _over_agent(self, state: TrainedState, known: TickInput) -> TickDecision:
        c, taken = self.config, state.taken
        if known.voiced:
            if known.voiced_s >= c.least_s and taken >= c.takeover_p:
                return TickDecision(yield_=0.9)
            return TickDecision(yield_=min(taken, 0.7), backchannel=0.5 if taken < 0.3 else 0.2)
        if known.silence_s < c.settle_s:
            return TickDecision(yield_=0.2)
        if known.voiced_s >= 0.1 and taken >= 0.5:
            return TickDecision(yield_=0.9)
        return TickDecision(backchannel=0.9)
