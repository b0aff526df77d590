"""Damage to what a file says: values, fields, cells, tensors, headers.

As in `fuzz_damage`, every function takes a file's content and a random generator.
"""

import copy
import json
import random
from typing import Any

from fuzz_damage import PIECES, of_bytes, place_in

Value = Any
"""Of JSON."""


def _any_value(draw: random.Random) -> Value:
    """A value of no type in particular."""
    deep: Any = []
    for _ in range(draw.choice((3, 200))):
        deep = draw.choice(([deep], {"a": deep}))
    return draw.choice(
        (
            *(None, True, False, 0, 1, -1, 3, 1.5, -0.0, 1e-300, 1e308, 2**31, 2**63, -(2**63)),
            *(10**18, 10**30, 10**400, float("nan"), float("inf"), "", " ", "x", "1", "-1", "nan"),
            *(
                "../../etc/passwd",
                "/etc/passwd",
                "*/../x",
                "a\0b",
                "\ud800",
                "\x1b[2J",
                "\u202eabc",
            ),
            *("<script>alert(1)</script>", "x" * 100_000, "None", "true", "1e3", "[]", "~"),
            *([], {}, [None], {"": None}, [[]], {"a": 1}, deep, list(range(2000))),
        )
    )


def of_value(value: Value, draw: random.Random) -> Value:
    """A copy of a JSON value with something in it changed, dropped, added, renamed or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _changed(value, draw)
    return value


def _changed(value: Value, draw: random.Random) -> Value:
    holder: Any = None
    place: Any = None
    node = value
    # Down from the top, so that a long list of numbers is not all that is ever hit.
    while isinstance(node, dict | list) and node and draw.random() < 0.85:
        holder = node
        place = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        node = node[place]
    if holder is None:
        return _any_value(draw)
    match draw.randrange(8):
        case 0:
            del holder[place]
        case 1 if isinstance(holder, dict):
            name = draw.choice(("x", "", "format", "__class__", "\ud800", "a\0", "y" * 9999))
            holder[name] = node
        case 1:
            holder.insert(place, node)
        case 2 if isinstance(holder, dict):
            holder[str(place) + draw.choice((" ", "s", "\0", ""))] = holder.pop(place)
        # Not of an integer of 5,000 digits, which an earlier change may have put there.
        case 3 if type(node) is float or (type(node) is int and node.bit_length() < 1000):
            factor, more = draw.choice(((1, 1), (1, -1), (-1, 0), (10**6, 0), (0, 0), (1, 0.5)))
            holder[place] = node * factor + more
        case 4 if isinstance(holder, dict):
            other = draw.choice(list(holder))
            holder[place], holder[other] = holder[other], node
        case 5:
            holder[place] = draw.choice(([node], {"a": node}, str(node)))
        case _:
            holder[place] = _any_value(draw)
    return value


def _dump(value: Value, draw: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 1)))
    return text.encode("utf-8", "surrogatepass")


def of_json(data: bytes, draw: random.Random) -> bytes:
    """JSON whose values are wrong, or that is none."""
    if draw.random() < 0.35:
        return of_bytes(data, draw)
    changed = _dump(of_value(json.loads(data), draw), draw)
    return of_bytes(changed, draw) if draw.random() < 0.05 else changed


def of_json_lines(data: bytes, draw: random.Random) -> bytes:
    """JSON lines one or more of which are wrong."""
    if draw.random() < 0.35:
        return of_bytes(data, draw)
    lines = data.splitlines()
    for _ in range(draw.choice((1, 1, 3))):
        at = draw.randrange(len(lines))
        value = of_value(json.loads(lines[at]), draw) if lines[at].startswith(b"{") else None
        lines[at] = _dump(value, draw).replace(b"\n", b"")
    return b"\n".join(lines) + draw.choice((b"", b"\n"))


_YAML = (
    "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: &d [*c, *c, *c]\n"
    "e: &e [*d, *d, *d]\nf: &f [*e, *e, *e]\ng: &g [*f, *f, *f]\nh: &h [*g, *g, *g]\ni: [*h, *h]\n",
    "a: &a {x: 1}\nb: &b {<<: [*a, *a, *a, *a, *a, *a, *a, *a, *a]}\n"
    "c: &c {<<: [*b, *b, *b, *b, *b, *b, *b, *b, *b]}\n"
    "d: &d {<<: [*c, *c, *c, *c, *c, *c, *c, *c, *c]}\n"
    "e: &e {<<: [*d, *d, *d, *d, *d, *d, *d, *d, *d]}\n"
    "f: &f {<<: [*e, *e, *e, *e, *e, *e, *e, *e, *e]}\n"
    "g: &g {<<: [*f, *f, *f, *f, *f, *f, *f, *f, *f]}\n"
    "h: &h {<<: [*g, *g, *g, *g, *g, *g, *g, *g, *g]}\n"
    "i: &i {<<: [*h, *h, *h, *h, *h, *h, *h, *h, *h]}\nj: {<<: [*i, *i, *i, *i, *i, *i, *i, *i]}\n",
    "seed: &x [*x]\n",
    "&r\nmodel: *r\n",
    "seed: !!python/object/apply:os.system ['touch fuzzed']\n",
    "seed: !!python/name:os.system\n",
    "seed: !!binary aGVsbG8\n",
    "seed: !!int x\n",
    "seed: !!float ''\n",
    "seed: !!timestamp 2020-13-45\n",
    "seed: !!set {a, b}\n",
    "seed: !!omap [a: 1]\n",
    "seed: 1:1:1:1:1\n",
    "seed: 0x" + "f" * 5000 + "\n",
    "seed: 0b2\nlog_every: 0o9\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "2020-01-01: 1\n1.5: 2\ntrue: 3\n~: 4\n",
    'summary: "\\ud800 \\0 \\x1b[2J"\n',
    'model: {hidden_act: "\\ud800"}\n',
    "%YAML 9.9\n---\n...\n---\n",
    "summary: " + "'" * 3 + "\n",
    "summary: |\n" + " x\n" * 3000,
    "- " * 2000 + "x\n",
    "{" * 2000 + "\n",
    "summary: " + "a: " * 500 + "\n",
    "<<: {seed: 3}\n",
    "<<: 3\n",
    "=: 3\n",
)


def of_yaml(data: bytes, draw: random.Random) -> bytes:
    """YAML with wrong values, with what only YAML has, or that is none."""
    import yaml

    kind = draw.random()
    if kind < 0.35:
        return of_bytes(data, draw)
    if kind < 0.5:
        at = place_in(data, draw)
        return data[:at] + draw.choice(_YAML).encode("utf-8", "surrogatepass") + data[at:]
    if kind < 0.55:
        return draw.choice(_YAML).encode("utf-8", "surrogatepass")
    value = of_value(yaml.safe_load(data), draw)
    text: str = yaml.safe_dump(value, allow_unicode=draw.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def of_table(data: bytes, draw: random.Random) -> bytes:
    """A table with cells too many, too few, exchanged or with something else in them."""
    if draw.random() < 0.35:
        return of_bytes(data, draw)
    parter = b"\t" if b"\t" in data else b","
    rows = [line.split(parter) for line in data.split(b"\n")]
    for _ in range(draw.choice((1, 1, 2, 4))):
        row, other = draw.choice(rows), draw.choice(rows)
        at = draw.randrange(len(row)) if row else 0
        match draw.randrange(7):
            case 0 if row:
                del row[at]
            case 1:
                row.insert(at, b"more")
            case 2 if row:
                row[at] = draw.choice(PIECES)
            case 3 if row and other:
                row[at] = draw.choice(other)
            case 4 if row:
                row[at] = draw.choice((b"", b" ", b'"', b'a"b', b'"a""b"', b'"a\nb"', b"3", b"2.5"))
            case 5:
                row[:] = other
            case 6:
                row.reverse()
    return b"\n".join(parter.join(row) for row in rows)


def of_safetensors(data: bytes, draw: random.Random) -> bytes:
    """Tensors whose header says something else, or whose bytes differ."""
    if draw.random() < 0.4:
        return of_bytes(data, draw)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw.random() < 0.3:
        name = draw.choice([one for one in header if one != "__metadata__"])
        field, value = draw.choice(
            (
                ("dtype", draw.choice(("F64", "I64", "BOOL", "F8_E4M3", "U8", "X"))),
                ("shape", draw.choice(([], [0], [2**40], [-1], [1, 1], [2**32, 2**32], [1.5]))),
                ("data_offsets", draw.choice(([0, 0], [0, 2**63], [8, 0], [-8, 0], [0], []))),
            )
        )
        header[name][field] = value
    else:
        header = of_value(header, draw)
    text = _dump(header, draw)
    said = len(text) + draw.choice((0, 0, 0, 0, 1, -1, 2**40))
    return max(0, said).to_bytes(8, "little") + text + body


def of_array(data: bytes, draw: random.Random) -> bytes:
    """An .npy file with another header, or other bytes."""
    if draw.random() < 0.5:
        return of_bytes(data, draw)
    start = 10 + int.from_bytes(data[8:10], "little")
    kind = draw.choice(("<u2", "<u4", "<i8", ">u2", "|O", "<f8", "|b1", "V7", "<U3", "x", "<M8[D]"))
    shape = draw.choice(("(1,)", "()", "(2, 2)", "(-1,)", f"({2**62},)", "(0,)", "(1.5,)", "(x,)"))
    header = draw.choice(
        (
            f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({len(data) - start},), }}",
            f"{{'descr': '<u2', 'fortran_order': True, 'shape': {shape}, }}",
            f"{{'descr': [('a', '{kind}')], 'fortran_order': False, 'shape': {shape}, }}",
            "{'descr': '<u2', 'fortran_order': False, 'shape': (1L,), }",
            "{" * 3000,
            "__import__('os').system('touch fuzzed')",
            "[" + "-" * 5000 + "1]",
            "'''",
            "",
        )
    ).encode()
    version = draw.choice((b"\x01\0", b"\x02\0", b"\x03\0", b"\x09\0"))
    size = len(header).to_bytes(2 if version == b"\x01\0" else 4, "little")
    return b"\x93NUMPY" + version + size + header + data[start:]
