"""Where a new version goes: always where it fits, and never in silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tiers import NoRoom, Room, Tier, choose

MIB = 1 << 20
SIZES = st.integers(0, 64).map(lambda mib: mib * MIB)
ROOMS = st.builds(Room, SIZES, SIZES, st.booleans())


@pytest.mark.parametrize(
    ("room", "alike", "tier"),
    [
        (Room(10, 10, True), False, Tier.BESIDE),
        (Room(3, 10, True), True, Tier.EXCHANGE),
        (Room(3, 3, False), True, None),  # the host is the device: an exchange needs as much
        (Room(3, 10, True), False, None),
        (Room(10, 3, True), True, None),  # it is read into the host's memory first
    ],
)
def test_the_first_tier_that_fits_is_taken(room, alike, tier):
    room = room._replace(device=room.device * MIB, host=room.host * MIB)
    if tier is not None:
        assert choose(4 * MIB, 4 * MIB, room, alike=alike) is tier
        return
    with pytest.raises(NoRoom, match="it takes 4 MiB beside the 4 MiB of the old one") as caught:
        choose(4 * MIB, 4 * MIB, room, alike=alike)
    assert caught.value.alone


@given(SIZES, SIZES, ROOMS, st.booleans(), st.sampled_from([None, *Tier]))
def test_what_is_chosen_fits_and_what_is_refused_says_whether_it_would_alone(
    needed, held, room, alike, wanted
):
    try:
        tier = choose(needed, held, room, alike=alike, wanted=wanted)
    except NoRoom as error:
        assert str(error)
        assert error.alone == (held > 0 and needed <= min(room.device, room.host) + held)
        return
    assert needed <= room.host
    assert tier is Tier.EXCHANGE or needed <= room.device
    assert tier is not Tier.EXCHANGE or alike
    assert wanted in (None, tier)


def test_an_operators_choice_that_cannot_be_says_why():
    plenty = Room(64 * MIB, 64 * MIB, True)
    assert choose(MIB, MIB, plenty, alike=True, wanted=Tier.EXCHANGE) is Tier.EXCHANGE
    with pytest.raises(NoRoom, match="another structure"):
        choose(MIB, MIB, plenty, alike=False, wanted=Tier.EXCHANGE)
    with pytest.raises(NoRoom, match="a process of its own"):
        choose(MIB, MIB, plenty, alike=True, wanted=Tier.PROCESS)
