"""The input projector of the small profile: sound as it comes, chunk by chunk, into vectors in the LLM's input space, and into its tokens.

    log-mel 100 Hz -> Whisper's encoder 50 Hz -> our own layers, read as phones 25 Hz -> more, read as tokens 12.5 Hz -> LLM width

Notable: Whisper's encoder looks at 30 s at once; here it looks, for every chunk of 320 ms, at a window of that chunk, some chunks before
it and one after it. So what comes out is one chunk late, and the end of a turn costs two windows. Whisper's layers are as published and are
not part of the shipped file. All of them are used: phones of unknown voices are read far better from the whole encoder in such windows than
from its lower layers, with which a chunk would be encoded only once.

Halfway the states are read as phones, and what was read goes on with them (self-conditioned CTC, arXiv:2104.02724): phones are learnt in
a few hundred steps, words from sound alone in many thousands. Between the rates, and within each layer, convolutions look a little back;
our own attention sees its own chunk and the 3.84 s before it.

A frame's scores are its products with the LLM's own token embeddings (and one learnt vector for "nothing new", the blank), so the frames
that say a token *are* nearly that token's embedding, and the LLM can read them. Beside these, products of a few more values with a learnt
code of each token: embeddings say what a word means and not how it sounds, and from sound to meaning alone it is a long way to learn.

One forward for both: a batch for training is "fresh state, one long step".

Legend: B batch, C chunks in a step, M mel frames (32 per chunk), T positions (16 per chunk), N positions in a window, S sounds (8 per
chunk), F frames out (4 per chunk), W width, H heads, D LLM width, K code width, V tokens in use, P phones.
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
from encoders.speech_projector_layers import KeysValues, Layer, Lookback, OwnLayer, chunk_mask

STEM_LEFT = 3
"""Mel frames before a chunk that its convolutions see."""
OUT_RATE_HZ = 12.5
"""Frames out per second."""
SAYING = 0.3
"""Share of frames that say a token, about."""
CODE_WIDTH = 128
"""Of the tokens' own codes."""
_FORM = 7


@dataclass(frozen=True, slots=True)
class SpeechProjectorConfig:
    """Sizes; the defaults are those that ship."""

    width: int = 384
    """Of all layers; Whisper tiny's."""
    heads: int = 6
    """Of each attention."""
    encoder_layers: int = 4
    """Whisper's, from the lowest."""
    sound_layers: int = 2
    """Our own at 25 Hz, which are read as phones."""
    word_layers: int = 4
    """Our own at 12.5 Hz, which are read as tokens."""
    ffn: int = 1024
    """Inside our own layers."""
    reach: int = 7
    """Positions that the convolution within each of our own layers sees."""
    llm_width: int = 896
    """Of the LLM's embeddings."""
    code: int = CODE_WIDTH
    """Of the tokens' own codes."""
    chunk: int = 16
    """Encoder positions (20 ms each) that are computed together."""
    before: int = 4
    """Chunks before its own that are in a window of Whisper's."""
    left: int = 12
    """Chunks before its own that a position of ours sees."""
    phones: int = 48
    """That it tells apart halfway."""

    def __post_init__(self) -> None:
        sizes = self.width, self.sound_layers, self.word_layers, self.ffn, self.chunk, self.before, self.left, self.phones
        if self.width % (2 * self.heads) or self.chunk % 4 or min(sizes) < 1 or self.reach < 2:
            raise ValueError(
                "width must be a multiple of twice the heads, chunk of 4, reach at least 2 and every other size at least 1"
            )

    @property
    def mel_frames(self) -> int:
        """Mel frames in a chunk."""
        return 2 * self.chunk

    @property
    def out_frames(self) -> int:
        """Frames that come out for a chunk."""
        return self.chunk // 4


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
        self.encoder = nn.ModuleList([Layer(c.width, c.heads, 4 * c.width, turn=False) for _ in range(c.encoder_layers)])
        self.encoder_norm = nn.LayerNorm(c.width)
        self.to_sounds = Lookback(c.width, 6, 2)
        self.sounds = nn.ModuleList([OwnLayer(c.width, c.heads, c.ffn, c.reach) for _ in range(c.sound_layers)])
        self.phone_norm = nn.LayerNorm(c.width)
        self.phone = nn.Linear(c.width, c.phones + 1)
        self.told = nn.Linear(c.phones + 1, c.width, bias=False)
        self.more = nn.Linear(c.width, c.width, bias=False)
        nn.init.zeros_(self.more.weight)
        self.to_words = Lookback(c.width, 4, 2)
        self.words = nn.ModuleList([OwnLayer(c.width, c.heads, c.ffn, c.reach) for _ in range(c.word_layers)])
        self.norm = nn.LayerNorm(c.width)
        self.out = nn.Linear(c.width, c.llm_width + c.code)
        self.register_buffer("positions", sinusoids(1500, c.width), persistent=False)

    def open(self, batch: int = 1) -> ProjectorState:
        """A fresh state for `batch` streams."""
        where = self.out.weight
        c = self.config
        peak = torch.full((batch,), QUIET, device=where.device)
        stem = torch.full((batch, STEM_LEFT, MELS), SILENCE, device=where.device)
        near = torch.zeros(batch, (1 + c.before) * c.chunk, c.width, device=where.device)
        return ProjectorState(0, peak, stem, near)

    def forward(self, mel: Tensor, state: ProjectorState, settled: int | None = None) -> tuple[Tensor, Tensor, ProjectorState]:
        """[B, M, 80] log10 mel power, whole chunks -> [B, F, D + K] vectors (unit: the table's), [B, S, 1 + P] phone scores, state.

        What comes out is that of the sound one chunk earlier. settled: after how many of the chunks the state shall be, where the rest may
        turn out to be something else; None for all of them.
        """
        count = mel.shape[1] // self.config.mel_frames
        drop = 0 if settled is None else count - settled
        x, after = self.whisper(mel, state, drop)
        sounds, phones, after = self.hear(x, after, drop)
        vectors, after = self.word(phones, sounds, after, drop)
        return vectors, phones, after if drop < count else state

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

    def hear(self, x: Tensor, state: ProjectorState, drop: int = 0) -> tuple[Tensor, Tensor, ProjectorState]:
        """What `whisper` gave -> [B, S, W] our states of the sound, [B, S, 1 + P] phone scores, and the state for `word`."""
        c = self.config
        through = _Through(state, c, x.shape[1] // c.chunk, drop, 0, 0)
        sounds = through.layers(self.sounds, through.look(self.to_sounds, self.encoder_norm(x)))
        return sounds, self.phone(self.phone_norm(sounds)), through.state()

    def word(self, phones: Tensor, sounds: Tensor | None, state: ProjectorState, drop: int = 0) -> tuple[Tensor, ProjectorState]:
        """What `hear` gave -> [B, F, D + K] vectors, and the state after the step. sounds: None where there are phones alone."""
        c = self.config
        count = phones.shape[1] * 2 // c.chunk
        through = _Through(state, c, count, drop, 1 + len(self.sounds), c.sound_layers)
        x = self.told((0.5 * phones.log_softmax(2)).exp())  # roots: what is unlikely counts too
        if sounds is not None:
            x = x + self.more(sounds)
        y = through.layers(self.words, through.look(self.to_words, x))
        return self.out(self.norm(y)), replace(through.state(), chunks=state.chunks + count - drop)

    def own_parameters(self) -> dict[str, Tensor]:
        """What is trained here and ships: everything but Whisper's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(("conv1.", "conv2.", "encoder."))}


class _Through:
    """A step through our own layers: takes what the stream remembers, place by place, and keeps what it will remember."""

    def __init__(self, state: ProjectorState, config: SpeechProjectorConfig, count: int, drop: int, tail: int, layer: int) -> None:
        """count, drop: chunks in the step, and the newest of them, which are not remembered. tail, layer: the first convolution and the
        first attention that come.
        """
        c = config
        self._state, self._config, self._count, self._drop, self._tail, self._layer = state, config, count, drop, tail, layer
        self._tails: list[Tensor | None] = list(state.tails) or [None] * (2 + c.sound_layers + c.word_layers)
        self._past = list(state.past) or [None] * (c.sound_layers + c.word_layers)

    def look(self, back: Lookback, x: Tensor) -> Tensor:
        """Through a convolution."""
        made, self._tails[self._tail] = back(x, self._tails[self._tail], x.shape[1] // self._count * self._drop)
        self._tail += 1
        return made

    def layers(self, layers: nn.ModuleList, y: Tensor) -> Tensor:
        """Through layers of one rate."""
        state, left, size = self._state, self._config.left, y.shape[1] // self._count
        mask = chunk_mask(self._count, min(state.chunks, left), left, size, y.device)
        for layer in layers:
            assert isinstance(layer, OwnLayer)
            y = y + self.look(layer.near, layer.near_norm(y))
            y, self._past[self._layer] = layer(
                y, self._past[self._layer], mask, state.chunks * size, left * size, self._drop * size
            )
            self._layer += 1
        return y

    def state(self) -> ProjectorState:
        """What the stream remembers now, at the chunk where the step began."""
        return replace(self._state, past=tuple(self._past), tails=tuple(self._tails))


class TokenHead(nn.Module):
    """Scores of frames: their products with the LLM's embeddings of the tokens in use and codes of these, biases, the blank's vector."""

    table: Tensor
    size: Tensor

    def __init__(self, table: Tensor, counts: Tensor | None = None, code: int = CODE_WIDTH) -> None:
        """table: [V, D] embeddings. counts: [V] how often each is said, for biases to begin with. code: K."""
        super().__init__()
        size = table.float().pow(2).mean().sqrt().clamp(min=1e-6)
        self.register_buffer("table", table.float() / size, persistent=False)  # rows of size about 1
        self.register_buffer("size", size, persistent=False)
        self.sharp = nn.Parameter(torch.tensor(12.0 / table.shape[1]).log())  # its logarithm
        common = torch.full((len(table),), 1 / len(table)) if counts is None else (counts + 0.5) / (counts + 0.5).sum()
        self.bias = nn.Parameter(torch.cat((torch.tensor([1 - SAYING]), SAYING * common)).log().float())
        self.blank = nn.Parameter(0.5 * torch.randn(table.shape[1]))
        self.codes = nn.Parameter(torch.zeros(len(table), code))

    def forward(self, vectors: Tensor, chosen: Tensor | None = None) -> Tensor:
        """[..., D + K] as the projector gives them -> [..., 1 + V] scores, the blank first. chosen: [C] tokens to score, not all V."""
        rows = self.table if chosen is None else self.table[chosen]
        codes = self.codes if chosen is None else self.codes[chosen]
        bias = self.bias if chosen is None else torch.cat((self.bias[:1], self.bias[1 + chosen]))
        meant, sounds = vectors.split((self.table.shape[1], self.codes.shape[1]), -1)
        blank = (meant @ self.blank.to(meant.dtype))[..., None]
        said = self.sharp.exp() * functional.linear(meant, rows).float() + functional.linear(sounds, codes).float()
        return torch.cat((self.sharp.exp() * blank.float(), said), -1) + bias

    def meant(self, vectors: Tensor) -> Tensor:
        """[..., D + K] as the projector gives them -> [..., D], where it sees them among the rows of the table."""
        return vectors[..., : self.table.shape[1]].float()

    def embeddings(self, meant: Tensor) -> Tensor:
        """[..., D] in the table's size -> in the one that the LLM's own embeddings have."""
        return meant * self.size


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


def collapse(scores: Tensor, before: int = 0) -> tuple[list[int], list[int], int]:
    """[F, 1 + V] -> CTC's greedy reading: tokens (0 is the first in use), the frame that says each best, and the last frame's class.

    before: the class of the frame before the first, as the last call gave it.
    """
    best = scores.argmax(1).tolist()
    sure = scores.log_softmax(1).amax(1).tolist()
    tokens: list[int] = []
    frames: list[int] = []
    for frame, found in enumerate(best):
        if found and found != before:
            tokens.append(found - 1)
            frames.append(frame)
        elif found and frames and frame and sure[frame] > sure[frames[-1]]:
            frames[-1] = frame
        before = found
    return tokens, frames, before


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
            part, _, kind = name.partition(".")
            wanted[f"encoder.{index}.{name}"] = f"encoder.blocks.{index}.{names[part]}.{kind}"
    try:
        given = {ours: tensors[theirs].float() for ours, theirs in wanted.items()}
        net.load_state_dict(given, strict=False)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"This is not the encoder of Whisper tiny.en ({error}); fetch the weights again.") from error


def restore(file: Path, own: dict[str, Tensor], whisper: dict[str, Tensor]) -> tuple[SpeechProjector, Tensor, dict[str, Tensor]]:
    """What `save` wrote, and Whisper's encoder -> the net, the [V] ids of the tokens in use, and the head's parameters.

    file: for its metadata and messages. Raises WeightsError when something does not fit.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
        if told.get("form") != str(_FORM):
            raise ValueError(f"form {told.get('form')} instead of {_FORM}")
        net = SpeechProjector(SpeechProjectorConfig(*map(int, told["sizes"].split())))
        load_whisper(net, whisper)
        learnt = {name[4:]: value.float() for name, value in own.items() if name.startswith("net.")}
        if learnt.keys() != net.own_parameters().keys():
            raise ValueError("its tensors are not those of a projector")
        net.load_state_dict(learnt, strict=False)
        head = {name[5:]: value.float() for name, value in own.items() if name.startswith("head.")}
        return net, own["vocabulary"].long(), head
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{file} does not hold an input projector of this version ({error}).") from error


def save(file: Path, net: SpeechProjector, head: TokenHead, vocabulary: Tensor) -> dict[str, Tensor]:
    """Write what ships: fp16, our own parameters, the head's, and the [V] ids of the tokens in use."""
    from safetensors.torch import save_file

    kept = {f"net.{name}": value.half() for name, value in net.own_parameters().items()}
    kept |= {f"head.{name}": value.detach().half() for name, value in head.named_parameters()}
    kept["head.sharp"] = head.sharp.detach().float()
    kept["vocabulary"] = vocabulary.int()
    kept = {name: value.detach().cpu().contiguous() for name, value in kept.items()}
    c = net.config
    sizes = " ".join(str(getattr(c, one.name)) for one in fields(c))
    part = file.with_suffix(".part")
    save_file(kept, part, metadata={"form": str(_FORM), "sizes": sizes})
    part.replace(file)
    return kept
