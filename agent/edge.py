"""The voice that is trained here, from the weights that ship with the decoders: pointer LM, flow, and the HiFi-GAN of the voice "joe"."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from agent.thinker import Thinker
from decoders import flow_checkpoint, flow_voice, pointer_lm_weights
from decoders.edge_voice import EdgeSoundConfig, EdgeVoice
from decoders.flow_graph import GraphFlow
from decoders.hifigan_stream import StreamingGan
from decoders.latent_vocoder import LatentVocoder
from decoders.phonemes import Lexicon, PhonemeTable
from decoders.pointer_lm import Head, PointerLM, PointerLMConfig
from decoders.pointer_lm_streaming import PointerDecoder, PointerDrawConfig
from decoders.pointer_speech import PointerSpeech
from decoders.reading import TextReader
from decoders.tiny_voice import tiny_phonemes, tiny_table
from decoders.token2wav import VOICE_STEPS, Token2Wav, Token2WavConfig
from decoders.vits_net import VitsNetConfig
from decoders.vits_sound import Generator
from duplex.errors import WeightsError

MARKS = ",.;:!?"
TINY_CHANNELS = 6
TINY_FLOW: dict[str, Any] = {
    "window": 7,
    "encoder": replace(flow_voice.VOICE.encoder, width=16, heads=2, feed_forward=16),
    "estimator": replace(flow_voice.VOICE.estimator, channels=16, heads=2, head_width=8),
}
MOST_SENTENCE_PHONES = 200
"""A sentence of more is ended at a comma or a word, after about 15 s, which is as long as what the voice was trained on."""


@dataclass(frozen=True)
class EdgeVoiceConfig:
    """How the voice that is trained here is run."""

    draw: PointerDrawConfig = field(default_factory=PointerDrawConfig)
    """How codes are drawn."""
    passage_phones: int = 40
    """A sentence's end ends a passage, which is what the voice LM keeps in mind, when the passage has so many phones."""
    flow_steps: int | None = None
    """Steps of the flow's solver; None for what it was brought down to."""
    token2wav: Token2WavConfig = VOICE_STEPS
    """When sound is made."""
    sound: EdgeSoundConfig = field(default_factory=EdgeSoundConfig)
    """What is done to it."""
    threads: int = 1
    """Threads of flow and vocoder; more than the free cores makes small layers many times slower."""

    def __post_init__(self) -> None:
        if self.passage_phones < 1 or self.threads < 1 or (self.flow_steps is not None and self.flow_steps < 1):
            raise ValueError("the voice's passage_phones, flow_steps and threads must be at least 1")


def is_trained() -> bool:
    """Whether all of its weights are there."""
    return pointer_lm_weights.WEIGHTS.is_file() and flow_voice.WEIGHTS.is_file()


def load_voice(split: Path, voice_config: Path, config: EdgeVoiceConfig, thinker: Thinker) -> EdgeVoice:
    """The voice for the LLM that it was trained with. `split`, `voice_config`: as for `BridgeVoice.load`.

    Raises WeightsError when a part is missing, damaged, or made for another LLM.
    """
    net, made = pointer_lm_weights.load(), flow_voice.load()
    if net.config.llm_width != thinker.hidden_size:
        raise WeightsError(
            f"The voice LM reads an LLM of width {net.config.llm_width}, this one's is {thinker.hidden_size}; use output: bridge."
        )
    flow = GraphFlow(made.flow, config.flow_steps, config.threads)
    vocoder = LatentVocoder.load(split, made.mean, made.deviation, config.threads)
    table = PhonemeTable.load(voice_config)
    reader = TextReader(Lexicon(), table, thinker.decode, MOST_SENTENCE_PHONES)
    return join_voice(net, Token2Wav(flow, vocoder, config.token2wav), reader, config, thinker)


def tiny_voice(config: EdgeVoiceConfig, thinker: Thinker) -> EdgeVoice:
    """The same voice with random weights of a few hundred kB: one phone a letter, no file, no sense, every code path."""
    sizes = PointerLMConfig(width=32, layers=2, heads=2, mlp=64, head_width=16, llm_width=thinker.hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, generator = PointerLM(sizes).train(False), Generator(VitsNetConfig(channels=TINY_CHANNELS, generator=16))
    with torch.no_grad():
        cast(Head, net.chain.heads[-1]).outer.bias[1] += 4.0  # so that it gets on
    flow = flow_checkpoint.tiny(0, replace(flow_voice.VOICE, mel=TINY_CHANNELS, steps=config.flow_steps or 1, **TINY_FLOW))
    gan = StreamingGan({f"dec.{name}": value.detach().numpy() for name, value in generator.state_dict().items()}, config.threads)
    vocoder = LatentVocoder(gan, torch.zeros(TINY_CHANNELS), torch.ones(TINY_CHANNELS))
    reader = TextReader(tiny_phonemes, PhonemeTable(tiny_table()), thinker.decode, MOST_SENTENCE_PHONES)
    return join_voice(net, Token2Wav(flow, vocoder, config.token2wav), reader, config, thinker)


def join_voice(net: PointerLM, token2wav: Token2Wav, reader: TextReader, config: EdgeVoiceConfig, thinker: Thinker) -> EdgeVoice:
    """Parts into a voice."""
    marks = [phone for mark in MARKS for phone in reader.table.phones(mark)]
    speech = PointerSpeech(PointerDecoder(net, config.draw), marks, config.passage_phones)
    return EdgeVoice(speech, reader, thinker.embed, token2wav, config.sound)
