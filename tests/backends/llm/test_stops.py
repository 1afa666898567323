"""Stop strings, against a search of the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.llm.stops import StopStrings

texts = st.text(alphabet="abc", max_size=20)


def first_stop(text: str, stops: list[str]) -> str | None:
    """The text before the stop string that is whole first."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return None


@given(
    text=texts, stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_wherever_the_text_is_cut(text, stops, data):
    finder, said, at = StopStrings(stops), "", 0
    expected = first_stop(text, stops)
    while at < len(text):
        size = data.draw(st.integers(1, 4))
        part, hit = finder.feed(text[at : at + size])
        said += part
        at += size
        if hit:
            assert said == expected
            return
        assert expected is None or expected.startswith(said), "what was said stays"
    part, hit = finder.feed("", final=True)
    assert (said + part, hit) == (text, False) and expected is None


def test_no_more_is_held_back_than_could_become_a_stop():
    finder = StopStrings(["END", "\n\n"])
    assert finder.feed("text EN") == ("text ", False)
    assert finder.feed("T\n") == ("ENT", False)
    assert finder.feed("\nmore") == ("", True)
