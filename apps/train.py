"""`duologue train`: teach the parts that are trained here; each goes on where it was stopped."""

from __future__ import annotations

import argparse

from apps import (
    train_codes,
    train_corpus,
    train_flow,
    train_predictor,
    train_projector,
    train_sentence_end,
    train_tokenizer,
    train_voice_lm,
)

PARTS = {
    "corpus": (
        train_corpus.add_arguments,
        train_corpus.run_training,
        "what the voice learns from: the LLM's replies and their phones",
    ),
    "flow": (train_flow.add_arguments, train_flow.run_training, "the voice: codes to latents in one or two steps"),
    "tokenizer": (train_tokenizer.add_arguments, train_tokenizer.run_training, "speech codes and back, from the teacher's latents"),
    "codes": (train_codes.add_arguments, train_codes.run_codes, "the teacher's speech of all replies, as codes"),
    "voice-lm": (train_voice_lm.add_arguments, train_voice_lm.run_training, "speech codes from the LLM's tokens and hidden states"),
    "predictor": (train_predictor.add_arguments, train_predictor.run_training, "when to take, keep or give up the floor"),
    "sentence-end": (
        train_sentence_end.add_arguments,
        train_sentence_end.run_training,
        "where the user's sentence ends, by the LLM's states",
    ),
    "projector": (train_projector.add_arguments, train_projector.run_training, "speech straight into the language model"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `duologue train`."""
    parts = parser.add_subparsers(dest="part", metavar="part", required=True)
    for name, (arguments, _, about) in PARTS.items():
        arguments(parts.add_parser(name, help=about, description=about))


def run(args: argparse.Namespace) -> int:
    """Entry point; returns the exit code."""
    return PARTS[args.part][1](args)
