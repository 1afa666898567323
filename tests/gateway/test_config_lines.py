"""Lines of keys, on texts that are hard to read without a TOML parser."""

from __future__ import annotations

import tomllib

import hypothesis.strategies as st
from hypothesis import given

from gateway.config_lines import key_lines, line_of

HARD = '''# comment [not.a.table]
title = "a # b ] c = 1"
[server]  # after
listen = """
[fake]
x = 1
"""
nested = { a = 1, b = [1, 2] }
list = [
  "]", # ]
  [1],
]
"quoted key" = 'it''s' # two
a.b."c.d" = 1
[[models]]
name = "one"
  [[models.replicas]]
  name = "r"
  [models.replicas.extra]
  deep = true
[[models]]
[[models.replicas]]
weight = 1
[[models.replicas]]
weight = 2
'''.replace("'it''s'", "'its'")


def test_keys_are_found_where_they_stand():
    assert tomllib.loads(HARD)
    lines = key_lines(HARD)
    assert lines["title",] == 2
    assert lines["server",] == 3
    assert lines["server", "listen"] == 4
    assert lines["server", "nested"] == 8
    assert lines["server", "list"] == 9
    assert lines["server", "quoted key"] == 13
    assert lines["server", "a", "b", "c.d"] == 14
    assert lines["models", 0] == 15
    assert lines["models", 0, "replicas", 0, "name"] == 18
    assert lines["models", 0, "replicas", 0, "extra", "deep"] == 20
    assert lines["models", 1] == 21
    assert lines["models", 1, "replicas", 1, "weight"] == 25
    assert ("fake",) not in lines and ("server", "x") not in lines


def test_what_has_no_line_is_found_at_what_holds_it():
    lines = key_lines(HARD)
    assert line_of(lines, ("server", "nested", "a")) == 8
    assert line_of(lines, ("models", 1, "name")) == 21
    assert line_of(lines, ("missing",)) == 1


VALUES = st.sampled_from(
    [
        "1",
        '"]#"',
        "'[['",
        "[1, [2,\n 3]]",
        '"""\n[x]\ny = 1\n"""',
        "'''\n# ]'''",
        "{ a = [1] }",
        '"\\""',
    ]
)


@given(st.lists(st.tuples(st.booleans(), VALUES, st.sampled_from(["", " # ] '\"", "\n\n"]))))
def test_any_mix_of_values_leaves_the_lines_right(statements):
    text, expected, table = "", {}, ()
    for number, (opens, value, after) in enumerate(statements):
        if opens:
            text += f"[[t]]{after if after.strip() else ''}\n"
            table = ("t", 0 if not table else table[1] + 1)
            expected[table] = text.count("\n")
        expected[*table, f"k{number}"] = text.count("\n") + 1
        text += f"k{number} = {value}{after}\n"
    tomllib.loads(text)
    lines = key_lines(text)
    assert {place: lines[place] for place in expected} == expected
