"""Damaged outputs: no crash, no number that isn't in the text. `make fuzz` tries a million for each parser.

A case is a text of some vendor's tool (captured, or our own) in which pieces are cut, repeated, moved or replaced by
what is found in real logs; it goes to the parser of its vendor, or of another one.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from vendor_texts import CAPTURED, OWN, adapters, captured, invented

from flagperf.parsing.text import decode

INPUTS = int(os.environ.get("FLAGPERF_FUZZ_INPUTS", "0"))
"""For each parser; 0 for what a test run can afford, 10,000 over all."""
SEED = int(os.environ.get("FLAGPERF_FUZZ_SEED", "0"))

PIECES = [
    *(
        "|",
        "N/A",
        "-",
        " ",
        "   ",
        "\n",
        "\0",
        "65535W",
        "W",
        "MiB",
        "/",
        ":",
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        "GPU",
        "\t",
    ),
    *(
        "xxxxx",
        "1e309",
        "9" * 50,
        "0",
        "(",
        ")",
        "=",
        "+---+",
        "ERR!",
        "[Unknown Error]",
        "NaN",
        "Infinity",
        "\x1b[31m",
    ),
    *("-5C", "1,024 MiB", "中文", "℃", "%", "失败", "\r\n", "</gpu>", "<gpu>", "NPU", "\ufeff", "٣", "²", "½"),
]


def texts(vendor: str) -> list[tuple[str, str]]:
    """Return a vendor's texts, each with the command line that printed it."""
    found = [(OWN[vendor][0], "")] if vendor in OWN else []
    for sample in captured():
        if sample["vendor"] == vendor:
            found.append((decode((CAPTURED / sample["file"]).read_bytes())[:5000], sample["command"]))
    return found


def damaged(text: str, dice: random.Random) -> str:
    characters = list(text)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(characters) + 1)
        match dice.randrange(6):
            case 0:
                del characters[at : at + dice.randint(1, 60)]
            case 1 | 2:
                characters[at:at] = dice.choice(PIECES)
            case 3:
                del characters[at:]
            case 4:
                other = dice.randrange(len(characters) + 1)
                characters[at:at] = characters[other : other + dice.randint(1, 300)]
            case _:
                characters[at : at + 1] = dice.choice("0123456789.|-/ %W")
    return "".join(characters)


@pytest.mark.timeout(0 if INPUTS else 600)
@pytest.mark.parametrize("vendor", sorted(adapters()))
def test_a_damaged_output_never_crashes_a_parser_or_makes_it_invent(vendor: str) -> None:
    parser, seed = adapters()[vendor], f"{SEED} {vendor}"
    dice = random.Random(seed)
    own, others = texts(vendor), [text for each in OWN for text in texts(each)]
    for number in range(INPUTS or 10_000 // len(adapters())):
        text, command = dice.choice(own if own and dice.random() < 0.85 else others)
        broken = damaged(text, dice)
        began = time.process_time()
        said = parser.parse(broken, dice.choice([command, ""]))
        wrong = list(invented(broken, said))
        assert not wrong, f"input {number} of seed {seed!r}: {wrong}\n{broken}"
        assert time.process_time() - began < 10, f"input {number} of seed {seed!r} hangs the parser\n{broken}"
