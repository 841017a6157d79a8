"""Damages of a file, of its bytes, its text and its JSON, drawn by a `random.Random`."""

import json
import math
import re

# Words and values that readers of numbers, names, paths and formulas meet with difficulty.
ODD_WORDS = (
    "", " ", "nan", "inf", "-1", "0", "1e999", "1e-999", "1e300", "0x10", "1_0", "٣", "9" * 30,
    "9" * 5000, "None", "true", "[]", "{}", "=1+1", "a|b", "|", ",", '"', "'", "%s", "$HOME", "~",
    "~nouser/x", ".", "../..", "/dev/null", "\\", "a/b", "x" * 300, "-", "--", "=", "a=b", "é",
    "e\u0301", "\ufeff", "\u202e", "\u2028", "😀", "a\nb", "a\rb",
)  # fmt: skip
ODD_VALUES = (
    None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, math.nan, math.inf, "", "x", "0", "nan",
    "\x00", "\ud800", "../x", "x" * 300, [], {}, [[]], [None], [0], [1, [2]], {"a": {"b": 1}},
)  # fmt: skip
_TOKEN = re.compile(rb"[^\s,|<>\"/=:;]+")


def damage_bytes(rng, content):
    near, far = rng.randrange(200), rng.randrange(len(content) + 1)
    at = rng.choice((0, far, near, max(0, len(content) - near)))  # often near an end
    part = content[at : at + rng.randint(1, 600)]
    new = rng.choice((b"", bytes(len(part)), rng.randbytes(len(part)), part * 2, b"\n", part[:-1]))
    flipped = bytes([part[0] ^ 1 << rng.randrange(8)]) + part[1:] if part else b"x"
    end = rng.choice((b"", content[at + len(part) :], content[at + len(part) :]))
    return content[:at] + rng.choice((new, flipped)) + end


def damage_text(rng, content):
    words, lines = list(_TOKEN.finditer(content)), content.splitlines(keepends=True)
    how = rng.randrange(6)
    if how == 0 or not words:
        return damage_bytes(rng, content)
    if how == 1:
        text = content.decode("utf-8", "replace").replace("\n", rng.choice(("\n", "\r\n", "\r")))
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32-le", "cp037")), "replace")
    if how == 2:
        a, b = (rng.randrange(len(lines)) for _ in "ab")
        lines[a] = rng.choice((b"", lines[a] * 2, lines[b], lines[b] + lines[a]))
        return b"".join(lines)
    word, new = rng.choice(words), rng.choice(ODD_WORDS).encode("utf-8", "surrogatepass")
    return content[: word.start()] + new + content[word.end() :]


def _slots(value):
    """Every place in nested dictionaries and lists, as (container, key)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs)[:200]:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _slots(inner)


def damage_json(rng, content):
    if rng.randrange(3) == 0:
        return damage_text(rng, content)
    value = json.loads(content)
    container, key = rng.choice(list(_slots(value)))
    if rng.randrange(6) == 0:
        del container[key]
    else:
        container[key] = rng.choice((*ODD_VALUES, [container[key]]))
    return json.dumps(value).encode("utf-8", "surrogatepass")


DAMAGES = {"bytes": damage_bytes, "text": damage_text, "json": damage_json}
