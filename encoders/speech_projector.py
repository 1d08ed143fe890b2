"""The input projector's network: sound as it comes, chunk by chunk, into phones; `encoders.word_search` makes words of these.

    log-mel 100 Hz -> Whisper's encoder 50 Hz -> our own layers 25 Hz, read as phones

Notable: Whisper's encoder looks at 30 s at once; here it looks, for every chunk of 320 ms, at a window of that chunk, some chunks before
it and one after it. So what comes out is one chunk late, and the end of a turn costs two windows. Whisper's layers are as published and
not part of the shipped file; what was learnt beside them (LoRA), if anything was, is. All of them are used: phones of unknown voices are
read far better from the whole encoder in such windows than from its lower layers, with which a chunk would be encoded only once.

Between the rates, and within each of our own layers, convolutions look a little back; our own attention sees its own chunk and the 3.84 s
before it. One forward for both: a batch for training is "fresh state, one long step".

Legend: B batch, C chunks in a step, M mel frames (32 per chunk), T positions (16 per chunk), N positions in a window, S sounds (8 per
chunk), W width, H heads, P phones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from duplex.errors import WeightsError
from encoders.mel import MELS, PEAK, QUIET, SILENCE
from encoders.speech_projector_layers import Adapted, KeysValues, Layer, Lookback, OwnLayer, chunk_mask
from encoders.word_lexicon import Lexicon
from encoders.word_ngrams import WordNgrams

STEM_LEFT = 3
"""Mel frames before a chunk that its convolutions see."""
SOUND_RATE_HZ = 25.0
"""Sounds per second."""
_FORM = 10
_WHISPER, _BESIDE = ("conv1.", "conv2.", "encoder."), (".down", ".up")


@dataclass(frozen=True, slots=True)
class SpeechProjectorConfig:
    """Sizes; the defaults are those that ship."""

    width: int = 384
    """Of all layers; Whisper tiny's."""
    heads: int = 6
    """Of each attention."""
    encoder_layers: int = 4
    """Whisper's, from the lowest."""
    sound_layers: int = 4
    """Our own, which are read as phones."""
    ffn: int = 1024
    """Inside our own layers."""
    reach: int = 7
    """Positions that the convolution within each of our own layers sees."""
    chunk: int = 16
    """Encoder positions (20 ms each) that are computed together."""
    before: int = 4
    """Chunks before its own that are in a window of Whisper's."""
    left: int = 12
    """Chunks before its own that a position of ours sees."""
    phones: int = 48
    """That it tells apart."""
    rank: int = 8
    """Of what is learnt beside each of Whisper's linear layers; 0 leaves them as published."""

    def __post_init__(self) -> None:
        sizes = self.width, self.sound_layers, self.ffn, self.chunk, self.before, self.left, self.phones
        if self.width % (2 * self.heads) or self.chunk % 2 or min(sizes) < 1 or self.reach < 2 or self.rank < 0:
            raise ValueError(
                "width must be a multiple of twice the heads, chunk of 2, reach at least 2, rank at least 0 and every other size at least 1"
            )

    @property
    def mel_frames(self) -> int:
        """Mel frames in a chunk."""
        return 2 * self.chunk

    @property
    def sounds(self) -> int:
        """Sounds that come out for a chunk."""
        return self.chunk // 2


@dataclass(frozen=True, slots=True)
class ProjectorState:
    """What a stream remembers. Immutable: a step gives a new one, so an old one can be gone back to."""

    chunks: int
    """Chunks so far."""
    peak: Tensor
    """[B] the loudest mel value so far."""
    stem: Tensor
    """[B, 3, 80] the newest levelled frames."""
    near: Tensor
    """[B, (1 + before) 16, W] the newest positions of Whisper's stem; the last chunk waits for the one after it."""
    past: tuple[KeysValues | None, ...] = field(default=())
    """Per attention of our own, in the order of the layers; empty, or None, before the first chunk."""
    tails: tuple[Tensor | None, ...] = field(default=())
    """Per convolution, in their order, [B, n, W] what it will see again; empty, or None, before the first chunk."""


class SpeechProjector(nn.Module):
    """The whole. Holds no state of a stream."""

    positions: Tensor

    def __init__(self, config: SpeechProjectorConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or SpeechProjectorConfig()
        self.conv1 = nn.Conv1d(MELS, c.width, 3)
        self.conv2 = nn.Conv1d(c.width, c.width, 3, stride=2)
        self.encoder = nn.ModuleList([Layer(c.width, c.heads, 4 * c.width, False, c.rank) for _ in range(c.encoder_layers)])
        self.encoder_norm = nn.LayerNorm(c.width)
        self.to_sounds = Lookback(c.width, 6, 2)
        self.sounds = nn.ModuleList([OwnLayer(c.width, c.heads, c.ffn, c.reach) for _ in range(c.sound_layers)])
        self.phone_norm = nn.LayerNorm(c.width)
        self.phone = nn.Linear(c.width, c.phones + 1)
        self.register_buffer("positions", sinusoids(1500, c.width), persistent=False)

    def open(self, batch: int = 1) -> ProjectorState:
        """A fresh state for `batch` streams."""
        where = self.phone.weight
        c = self.config
        peak = torch.full((batch,), QUIET, device=where.device)
        stem = torch.full((batch, STEM_LEFT, MELS), SILENCE, device=where.device)
        near = torch.zeros(batch, (1 + c.before) * c.chunk, c.width, device=where.device)
        return ProjectorState(0, peak, stem, near)

    def forward(self, mel: Tensor, state: ProjectorState, settled: int | None = None) -> tuple[Tensor, ProjectorState]:
        """[B, M, 80] log10 mel power, whole chunks -> [B, S, 1 + P] scores of phones, the blank first, and the state. See `sound`."""
        x, after = self.sound(mel, state, settled)
        return self.phone(x), after

    def sound(self, mel: Tensor, state: ProjectorState, settled: int | None = None) -> tuple[Tensor, ProjectorState]:
        """[B, M, 80] log10 mel power, whole chunks -> [B, S, W], what the phones are read from by `phone`, and the state.

        What comes out is that of the sound one chunk earlier. settled: after how many of the chunks the state shall be, where the rest may
        turn out to be something else; None for all of them.
        """
        count = mel.shape[1] // self.config.mel_frames
        drop = 0 if settled is None else count - settled
        x, after = self.whisper(mel, state, drop)
        x, after = self.hear(x, after, drop)
        return x, after if drop < count else state

    def whisper(self, mel: Tensor, state: ProjectorState, drop: int = 0) -> tuple[Tensor, ProjectorState]:
        """[B, M, 80] log10 mel power -> [B, T, W], Whisper's part, one chunk late, and the state with that part brought up to date.

        drop: the newest chunks, of which the state shall not know.
        """
        c = self.config
        if mel.shape[1] % c.mel_frames or not mel.shape[1]:
            raise ValueError(f"a step takes whole chunks of {c.mel_frames} mel frames, not {mel.shape[1]}")
        count, wide = mel.shape[1] // c.mel_frames, (c.before + 2) * c.chunk
        levelled, peaks = level(mel, state.peak, c.mel_frames)
        framed = torch.cat((state.stem, levelled), 1)
        x = functional.gelu(self.conv1(framed.transpose(1, 2)))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)  # [B, T, W]
        x = torch.cat((state.near, x), 1)
        windows = x.unfold(1, wide, c.chunk).transpose(2, 3)  # [B, C, N, W]
        y = self._windows(windows.flatten(0, 1), state.chunks, len(mel))
        stem, near = framed.shape[1] - drop * c.mel_frames, x.shape[1] - drop * c.chunk
        return y.view(len(mel), count * c.chunk, c.width), replace(
            state,
            peak=peaks[:, count - drop],
            stem=framed[:, stem - STEM_LEFT : stem],
            near=x[:, near - state.near.shape[1] : near],
        )

    def _windows(self, x: Tensor, chunks: int, batch: int) -> Tensor:
        """[B C, N, W] stem in windows, chunks before the first one's newest -> [B C, 16, W] the chunk before the newest of each."""
        c = self.config
        count, wide = len(x) // batch, x.shape[1]
        missing = (c.before + 1 - chunks - torch.arange(count)).clamp(min=0) * c.chunk  # positions from before the beginning
        places = torch.arange(wide)[None, :] - missing[:, None]
        mask = None
        if int(missing[0]):
            mask = (places >= 0).to(x.device).repeat(batch, 1)[:, None, None, :]  # [B C, 1, 1, N]
        x = x + self.positions[places.clamp(min=0).to(x.device)].repeat(batch, 1, 1)
        own = slice(wide - 2 * c.chunk, wide - c.chunk)
        for index, layer in enumerate(self.encoder):
            x, _ = layer(x, None, mask, 0, 0, only=own if index == len(self.encoder) - 1 else None)
        return x

    def hear(self, x: Tensor, state: ProjectorState, drop: int = 0) -> tuple[Tensor, ProjectorState]:
        """What `whisper` gave -> [B, S, W], what the phones are read from, and the state after the step."""
        c = self.config
        count, past, size = x.shape[1] // c.chunk, list(state.past) or [None] * c.sound_layers, c.sounds
        tails = list(state.tails) or [None] * (1 + c.sound_layers)
        y, tails[0] = self.to_sounds(self.encoder_norm(x), tails[0], drop * c.chunk)
        mask = chunk_mask(count, min(state.chunks, c.left), c.left, size, y.device)
        for index, layer in enumerate(self.sounds):
            assert isinstance(layer, OwnLayer)
            near, tails[1 + index] = layer.near(layer.near_norm(y), tails[1 + index], drop * size)
            y, past[index] = layer(y + near, past[index], mask, state.chunks * size, c.left * size, drop * size)
        after = replace(state, chunks=state.chunks + count - drop, past=tuple(past), tails=tuple(tails))
        return self.phone_norm(y), after

    def own_parameters(self) -> dict[str, Tensor]:
        """What is trained here and ships: everything but Whisper's."""
        return {name: value for name, value in self.state_dict().items() if name.endswith(_BESIDE) or not name.startswith(_WHISPER)}

    def fold(self) -> None:
        """Make what was learnt beside Whisper's layers part of them, which is quicker and can't be taught any more."""
        for part in self.encoder.modules():
            if isinstance(part, Adapted):
                part.fold()


def level(mel: Tensor, peak: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """`encoders.mel.level` as a stream: [B, M, 80], loudest so far [B] -> levelled by the loudest up to each chunk's end.

    Also [B, 1 + C]: the loudest so far, and up to each chunk's end. chunk: mel frames in a chunk.
    """
    loud = mel.unflatten(1, (-1, chunk)).amax((2, 3)).clamp(min=QUIET)  # [B, C]
    peaks = torch.cummax(torch.cat((peak[:, None], loud), 1), 1).values
    each = peaks[:, 1:].repeat_interleave(chunk, 1)[:, :, None]
    return (torch.maximum(mel, each - 8.0) + (PEAK + 4.0 - each)) / 4.0, peaks


def sinusoids(length: int, width: int) -> Tensor:
    """[length, width] Whisper's encoder positions."""
    rates = torch.exp(-math.log(10000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat((angles.sin(), angles.cos()), 1)


def collapse(scores: Tensor) -> list[int]:
    """[S, 1 + P] -> CTC's greedy reading, from 0."""
    best = scores.argmax(1)
    changed = torch.ones_like(best, dtype=torch.bool)
    changed[1:] = best[1:] != best[:-1]
    found: list[int] = (best[changed & (best > 0)] - 1).tolist()
    return found


def load_whisper(net: SpeechProjector, tensors: dict[str, Tensor]) -> None:
    """Put Whisper's encoder (OpenAI's names, as in `tiny.en.pt`'s `model_state_dict`) into the net. Raises WeightsError.

    Our own first norm begins as its last one.
    """
    names = {"attn_norm": "attn_ln", "query": "attn.query", "key": "attn.key", "value": "attn.value", "out": "attn.out"}
    names |= {"mlp_norm": "mlp_ln", "mlp_in": "mlp.0", "mlp_out": "mlp.2"}
    wanted = {f"conv{i}.{kind}": f"encoder.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    wanted |= {f"encoder_norm.{kind}": f"encoder.ln_post.{kind}" for kind in ("weight", "bias")}
    for index, layer in enumerate(net.encoder):
        for name, _ in layer.named_parameters():
            if name.endswith(_BESIDE):
                continue
            part, _, kind = name.partition(".")
            wanted[f"encoder.{index}.{name}"] = f"encoder.blocks.{index}.{names[part]}.{kind}"
    try:
        given = {ours: tensors[theirs].float() for ours, theirs in wanted.items()}
        net.load_state_dict(given, strict=False)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"This is not the encoder of Whisper tiny.en ({error}); fetch the weights again.") from error


def restore(file: Path, own: dict[str, Tensor], whisper: dict[str, Tensor]) -> tuple[SpeechProjector, Lexicon, WordNgrams]:
    """What `save` wrote, and Whisper's encoder. file: for its metadata and messages. Raises WeightsError when something does not fit."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
        if told.get("form") != str(_FORM):
            raise ValueError(f"form {told.get('form')} instead of {_FORM}")
        net = SpeechProjector(SpeechProjectorConfig(*map(int, told["sizes"].split())))
        load_whisper(net, whisper)
        learnt = {name: value.float() for name, value in _part(own, "net").items()}
        if learnt.keys() != net.own_parameters().keys():
            raise ValueError("its tensors are not those of a projector")
        net.load_state_dict(learnt, strict=False)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{file} does not hold an input projector of this version ({error}).") from error
    return net, Lexicon.of(_part(own, "lexicon")), WordNgrams.of(_part(own, "ngrams"))


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def save(file: Path, net: SpeechProjector, lexicon: Lexicon, ngrams: WordNgrams) -> dict[str, Tensor]:
    """Write what ships: our own parameters in fp16, the words and what comes after what."""
    from safetensors.torch import save_file

    kept = {f"net.{name}": value.half() for name, value in net.own_parameters().items()}
    kept |= {f"lexicon.{name}": value for name, value in lexicon.tensors().items()}
    kept |= {f"ngrams.{name}": value for name, value in ngrams.tensors().items()}
    kept = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    c = net.config
    sizes = " ".join(str(getattr(c, one.name)) for one in fields(c))
    part = file.with_suffix(".part")
    save_file(kept, part, metadata={"form": str(_FORM), "sizes": sizes})
    part.replace(file)
    return kept
