"""How the input projector is taught: what a training goes by, as it is on a GPU and as two cores can do it."""

from __future__ import annotations

from dataclasses import dataclass, field

from encoders.speech_augment import AugmentConfig


@dataclass(frozen=True)
class ProjectorTrainingConfig:
    """How the projector is taught."""

    seconds: float = 300.0
    """Time for learning; the learning rate follows it."""
    batch_s: float = 700.0
    """Sound per step."""
    rate: float = 1.2e-3
    """Peak learning rate."""
    warm_steps: int = 150
    """Steps until the peak."""
    decay: float = 0.01
    """Weight decay."""
    adapt_from: float = 0.4
    """Share of the time after which what stands beside Whisper's layers learns too; until then these are as published."""
    kept: float = 0.25
    """Share of what is learnt after that which is kept in the end, beside what had been learnt before it: people are heard better so."""
    again: int = 1
    """Until then: how often a batch that Whisper has heard is learnt from, on average: to hear costs several times what to learn does."""
    memory_h: float = 12.0
    """Hours of sound that are remembered for it, at 140 MB an hour."""
    eased: float = 0.4
    """Share of the time after which the sound is spoilt in full."""
    masked_p: float = 0.6
    """Share of steps with patches of sound left out."""
    average: float = 0.998
    """Of the running average of the weights, which is what is kept."""
    save_every_s: float = 45.0
    """Time between checkpoints."""
    seed: int = 0
    """Of everything that is drawn."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to the sound."""


ON_A_CPU = ProjectorTrainingConfig(
    batch_s=40.0,
    rate=1e-3,
    warm_steps=300,
    again=3,
    eased=0.15,
    masked_p=0.2,
    augment=AugmentConfig(
        speed=1.15, throat=1.1, room_p=0.35, noise_p=0.5, noise_db=(6.0, 32.0), line_p=0.1, clip_p=0.03, quietest_db=-30.0
    ),
)
"""What two cores can do: many small steps instead of few large ones, each batch learnt from thrice, and sound that is spoilt less."""
