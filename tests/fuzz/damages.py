"""Damages of a file: of its bytes, its text, its JSON and its tensors, drawn by hypothesis."""

import io
import json
import math
import random
import re
import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors

from spcl_lib.system.weights import save_tensors

# Words that readers of numbers, names, paths and formulas meet with difficulty.
ODD_WORDS = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "-0", "1e999", "1e-999", "1e300", "0x10", "1_0", "٣",
    "9" * 30, "9" * 5000, "None", "true", "[]", "{}", "=1+1", "@x", "a|b", "|", ",", '"', "'", "%s",
    "{0}", "$HOME", "~", "~nouser/x", ".", "..", "../..", "/dev/null", "/", "\\", "a/b", "x" * 300,
    "-", "--", "-h", "=", "a=b", "é", "e\u0301", "\ufeff", "\u202e", "\u2028", "😀", "a\nb", "a\rb",
)  # fmt: skip
ODD_VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, math.nan, math.inf,
    "", "x", "0", "nan", "\x00", "\ud800", "../x", "x" * 300, [], {}, [[]], [None], [0], {"": None},
    [1, [2, [3]]], {"a": {"b": 1}},
)  # fmt: skip
_TOKEN = re.compile(rb"[^\s,|<>\"/=:;]+")
_DEEP = 50_000  # deeper than any parser can follow


# --- bytes ----------------------------------------------------------------------------------------


def _place(draw, size):
    """A place in a file; headers and ends are hit more often than their share."""
    near = st.integers(0, min(size, 200) - 1)
    return draw(st.one_of(st.integers(0, size - 1), near, near.map(lambda i: size - 1 - i)))


def _noise(draw, size):
    return random.Random(draw(st.integers(0, 2**32))).randbytes(size)


def empty(draw, content):
    return b""


def cut_the_end(draw, content):
    return content[: _place(draw, len(content))]


def flip_a_bit(draw, content):
    at, changed = _place(draw, len(content)), bytearray(content)
    changed[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def fill_with_noise(draw, content):
    return _noise(draw, draw(st.sampled_from((1, 8, 100, len(content)))))


def overwrite_a_part(draw, content):
    at, size = _place(draw, len(content)), draw(st.integers(1, 600))
    part = bytes(size) if draw(st.booleans()) else _noise(draw, size)
    return content[:at] + part + content[at + size :]


def leave_out_a_part(draw, content):
    at = _place(draw, len(content))
    return content[:at] + content[at + draw(st.integers(1, 600)) :]


def repeat_a_part(draw, content):
    at, size = _place(draw, len(content)), draw(st.integers(1, 600))
    return content[: at + size] + content[at:]


def append(draw, content):
    return content + draw(st.sampled_from((b"\0", b"\n", b"x", b"\xff" * 40, content)))


BYTES = (empty, cut_the_end, flip_a_bit, flip_a_bit, fill_with_noise, overwrite_a_part,
         leave_out_a_part, repeat_a_part, append)  # fmt: skip


# --- text -----------------------------------------------------------------------------------------


def odd_texts():
    """Odd words, and any text; a path that leads up or to the system's folders is left out."""
    return st.sampled_from(ODD_WORDS) | st.text(max_size=20)


def replace_a_word(draw, content):
    found = list(_TOKEN.finditer(content))
    if not found:
        return append(draw, content)
    word = found[draw(st.integers(0, len(found) - 1))]
    new = draw(odd_texts()).encode("utf-8", "surrogatepass")
    return content[: word.start()] + new + content[word.end() :]


def change_a_line(draw, content):
    lines = content.splitlines(keepends=True) or [b""]
    a, b = (draw(st.integers(0, len(lines) - 1)) for _ in "ab")
    how = draw(st.sampled_from(("leave out", "repeat", "exchange", "add")))
    if how == "leave out":
        del lines[a]
    elif how == "exchange":
        lines[a], lines[b] = lines[b], lines[a]
    else:
        new = lines[b] if how == "repeat" else draw(odd_texts()).encode("utf-8", "replace") + b"\n"
        lines.insert(a, new)
    return b"".join(lines)


def change_the_encoding(draw, content):
    text = content.decode("utf-8", "replace")
    how = draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32-le", "cp037")))
    ends = draw(st.sampled_from(("\n", "\r\n", "\r")))
    return text.replace("\n", ends).encode(how, "replace")


TEXT = (*BYTES, replace_a_word, replace_a_word, replace_a_word, change_a_line, change_the_encoding)


# --- nested values --------------------------------------------------------------------------------


def _slots(value, found):
    """Every place in nested dictionaries and lists, as (container, key)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        found.append((value, key))
        if isinstance(inner, dict | list) and len(inner) < 200:
            _slots(inner, found)
    return found


def _change_a_slot(draw, value, odd):
    """Changes one place of a nested value; `odd` draws another value for an old one."""
    if not isinstance(value, dict | list) or not value:
        return draw(st.sampled_from(ODD_VALUES))
    found = _slots(value, [])
    container, key = found[draw(st.integers(0, len(found) - 1))]
    how = draw(st.sampled_from(("replace", "replace", "replace", "leave out", "rename", "wrap")))
    if how == "replace":
        container[key] = odd(draw, container[key])
    elif how == "wrap":
        container[key] = [container[key]]
    elif how == "leave out" or isinstance(container, list):
        del container[key]
    else:
        new = draw(odd_texts())
        container[new if isinstance(key, str) else 99] = container.pop(key)
    return value


def _odd_value(draw, old):
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
    return draw(st.sampled_from(ODD_VALUES) | simple)


def change_a_value(draw, content):
    try:
        value = json.loads(content)
    except ValueError:
        return replace_a_word(draw, content)
    return json.dumps(_change_a_slot(draw, value, _odd_value)).encode("utf-8", "surrogatepass")


def nest_deeply(draw, content):
    values = list(re.finditer(rb"(?<=[:\[,])\s*[^\s:,\[\]{}]+", content))
    deep = draw(
        st.sampled_from((b"[" * _DEEP + b"]" * _DEEP, b'{"a":' * _DEEP + b"1" + b"}" * _DEEP))
    )
    if not values:
        return deep
    one = values[draw(st.integers(0, len(values) - 1))]
    return content[: one.start()] + deep + content[one.end() :]


JSON = (*TEXT, *[change_a_value] * 8, nest_deeply)


# --- tensors: the file is sound, its content is not what is expected ------------------------------


def _other_tensor(draw, old):
    """The same values in another shape or type, or values that are no numbers."""
    how = draw(st.sampled_from(("flat", "deeper", "shorter", "longer", "type", "empty", "complex")))
    if how == "type":
        kinds = (torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)
        return old.to(draw(st.sampled_from([k for k in kinds if k != old.dtype])))
    if how == "complex":
        return old.to(torch.complex64)
    if how == "empty" or not old.ndim:
        return torch.zeros(draw(st.sampled_from(((0,), (1,), (2, 2), (0, 3)))), dtype=old.dtype)
    if how == "flat":
        return old.flatten() if old.ndim > 1 else old[:, None]
    if how == "deeper":
        return old[None]
    return old[:-1] if how == "shorter" else torch.cat([old, old[:1]])


def _odd_part(draw, old):
    """A value of another type, since another value of the right type is no damage."""
    if isinstance(old, torch.Tensor) and draw(st.integers(0, 3)):
        return _other_tensor(draw, old)
    odd = [None, "x", [], {}, 0.5, [1, 2], torch.ones(3), -1]
    return draw(st.sampled_from([value for value in odd if type(value) is not type(old)]))


def change_a_tensor(draw, content):
    tensors = load_safetensors(content)
    name = draw(st.sampled_from(sorted(tensors)))
    how = draw(st.sampled_from(("other", "other", "other", "leave out", "rename", "add", "nan")))
    if how in ("leave out", "rename"):
        old = tensors.pop(name)
        tensors |= {"other": old} if how == "rename" else {}
    elif how == "add":
        tensors["other"] = torch.ones(2)
    elif how == "nan" and tensors[name].is_floating_point():
        tensors[name] = torch.full_like(tensors[name], math.nan)
    else:
        tensors[name] = _other_tensor(draw, tensors[name])
    with tempfile.TemporaryDirectory() as folder:
        save_tensors(tensors, Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def change_a_part(draw, content):
    state = torch.load(io.BytesIO(content), weights_only=True)
    buffer = io.BytesIO()
    torch.save(_change_a_slot(draw, state, _odd_part), buffer)
    return buffer.getvalue()


FORMS = {
    "bytes": BYTES, "text": TEXT, "json": JSON, "safetensors": (*BYTES, *[change_a_tensor] * 6),
    "pt": (*BYTES, *[change_a_part] * 8),
}  # fmt: skip


@st.composite
def damages(draw, content, form):
    """The name of a damage, and the damaged content."""
    how = draw(st.sampled_from(FORMS[form]))
    return how.__name__, how(draw, content)
