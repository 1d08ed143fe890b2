"""A work folder of made-up replies with codes, in the form that `train corpus` and `train codes` write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

BEGIN, END = 1, 2


def reply(generator: np.random.Generator, sentences: int, learnable: bool = False) -> dict[str, np.ndarray]:
    """One reply. learnable: digits and durations are functions of the phone and the code's place in it."""
    phones, token_of, tokens = [], [], 0
    for _ in range(sentences):
        begun = False
        for _ in range(int(generator.integers(1, 7))):
            tokens += int(generator.integers(1, 3))
            word = [int(p) for p in generator.integers(3, 12, int(generator.integers(1, 5)))]
            word = word if begun else [BEGIN, *word]
            begun = True
            phones += word
            token_of += [tokens] * len(word)  # certain with the token after it
        phones.append(END)
        token_of.append(tokens)
    count = tokens + int(generator.integers(0, 2))
    place = np.minimum(np.array(token_of), count - 1)
    stays = [1 + phone % 3 for phone in phones] if learnable else [int(n) for n in generator.integers(0, 4, len(phones))]
    stays[0] = max(stays[0], 1)
    pointer = np.repeat(np.arange(len(phones)), stays)
    dwell = np.concatenate([np.arange(stay) for stay in stays])
    if learnable:
        codes = np.stack([(np.array(phones)[pointer] * (digit + 1) + dwell) % (7 if digit == 0 else 5) for digit in range(5)], 1)
    else:
        codes = np.stack([generator.integers(0, 7 if digit == 0 else 5, len(pointer)) for digit in range(5)], 1)
    return {
        "tokens": generator.integers(0, 50, count),
        "phones": np.array(phones),
        "phone_token": place,
        "codes": codes,
        "pointer": pointer,
        "durations": 4 * np.array(stays),
    }


def write(folder: Path, shards: int = 2, replies: int = 12, width: int = 8, learnable: bool = False) -> list[dict[str, np.ndarray]]:
    """The folder; the third reply of each shard has no codes. Returns all replies."""
    generator = np.random.default_rng(0)
    (folder / "replies").mkdir(parents=True)
    (folder / "codes").mkdir()
    made = []
    for shard in range(shards):
        own = [reply(generator, 1 + index % 3, learnable) for index in range(replies)]
        own[2]["codes"], own[2]["pointer"] = own[2]["codes"][:0], own[2]["pointer"][:0]
        made += own

        def flat(key: str, dtype: type, own: list[dict[str, np.ndarray]] = own) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([one[key] for one in own]).astype(dtype))

        def offsets(key: str, own: list[dict[str, np.ndarray]] = own) -> torch.Tensor:
            return torch.tensor([0, *np.cumsum([len(one[key]) for one in own])])

        tokens = flat("tokens", np.int32)
        hidden = torch.from_numpy(generator.normal(size=(len(tokens), width)).astype(np.float16))
        said = {"tokens": tokens, "tokens_offsets": offsets("tokens"), "hidden": hidden}
        said |= {
            "phones": flat("phones", np.uint8),
            "phones_offsets": offsets("phones"),
            "phone_token": flat("phone_token", np.int16),
        }
        save_file(said, folder / "replies" / f"{shard:03}.safetensors")
        coded = {"codes": flat("codes", np.uint8), "codes_offsets": offsets("codes"), "pointer": flat("pointer", np.int16)}
        save_file({**coded, "durations": flat("durations", np.uint8)}, folder / "codes" / f"{shard:03}.safetensors")
    ids = torch.arange(0, 50, dtype=torch.int32)
    table = torch.randint(-127, 128, (50, width), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    save_file({"weight": table, "scale": torch.full((50,), 0.01), "ids": ids}, folder / "embedding.safetensors")
    return made
