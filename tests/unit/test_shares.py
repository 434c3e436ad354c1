"""What is dealt of a user's limits: never more than there is, and to who needs it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trionat.server.accounts.limits import LiveLimits, Share, UserLimits
from trionat.server.workers.shared_limits import SharedLimits
from trionat.server.workers.shares import Usage, deal
from trionat.store.base import Limits

WORDS = ("w1", "w2", "w3")

usages = st.dictionaries(
    st.sampled_from(WORDS),
    st.builds(
        Usage, visitors=st.integers(0, 9), refused=st.integers(0, 3), moved=st.integers(0, 10**6)
    ),
    min_size=1,
)


@given(usages, st.integers(1, 50), st.integers(1000, 10**7), st.data())
def test_no_more_than_there_is(
    usage: dict[str, Usage], visitors: int, bandwidth: int, data: st.DataObject
) -> None:
    limits = Limits(visitors=visitors, bandwidth=bandwidth)
    before = deal(limits, data.draw(usages), {})
    shares = deal(limits, usage, before)
    assert set(shares) == set(usage)
    present = sum(used.visitors for used in usage.values())
    given_out = sum(share.visitors or 0 for share in shares.values())
    assert given_out == max(visitors, present)  # who is there stays, and nobody else comes in
    assert all((share.visitors or 0) >= usage[word].visitors for word, share in shares.items())
    assert sum(share.bandwidth or 0 for share in shares.values()) <= bandwidth
    assert all(share.bandwidth for share in shares.values())


def test_one_worker_has_all_of_it() -> None:
    limits = Limits(visitors=3, bandwidth=1000)
    assert deal(limits, {"w1": Usage(moved=10)}, {}) == {"w1": Share(visitors=3, bandwidth=1000)}


def test_no_limit() -> None:
    usage = {"w1": Usage(), "w2": Usage(visitors=7)}
    assert deal(Limits(), usage, {}) == {
        word: Share(visitors=None, bandwidth=None) for word in usage
    }


def test_places_go_to_who_had_to_refuse_somebody() -> None:
    usage = {"w1": Usage(visitors=1), "w2": Usage(visitors=1, refused=2)}
    shares = deal(Limits(visitors=5), usage, {})
    assert (shares["w1"].visitors, shares["w2"].visitors) == (1, 4)


def test_the_last_place_goes_to_who_has_fewest() -> None:
    shares = deal(Limits(visitors=4), {"w1": Usage(visitors=2), "w2": Usage(visitors=1)}, {})
    assert (shares["w1"].visitors, shares["w2"].visitors) == (2, 2)


def test_bandwidth_follows_the_need_and_comes_back() -> None:
    limits = Limits(bandwidth=1_000_000)
    shares = deal(limits, {"w1": Usage(), "w2": Usage()}, {})
    assert {share.bandwidth for share in shares.values()} == {500_000}
    for _ in range(2):  # only one of them is busy
        busy = shares["w1"].bandwidth or 0
        shares = deal(limits, {"w1": Usage(moved=busy), "w2": Usage()}, shares)
    assert (shares["w1"].bandwidth or 0) >= 900_000
    for _ in range(2):  # both are
        usage = {word: Usage(moved=share.bandwidth or 0) for word, share in shares.items()}
        shares = deal(limits, usage, shares)
    assert {share.bandwidth for share in shares.values()} == {500_000}


def test_a_share_holds_for_leases_to_come() -> None:
    limits = Limits(visitors=4)
    live = LiveLimits()
    live.deal("user", limits, Share(visitors=1, bandwidth=None))
    user_limits = live.take("user", limits)
    assert user_limits.share.visitors == 1
    assert live.take("user", Limits(visitors=5)).share.visitors == 1
    live.deal("user", limits, Share(visitors=3, bandwidth=7))
    assert user_limits.share.visitors == 3
    assert user_limits.throttle.rate == 7
    live.give_back(user_limits)
    live.give_back(user_limits)
    assert live.take("user", limits).share.visitors == 4


def test_what_another_login_may_claim_changes_no_share() -> None:
    """Each may have other ports and names; all that they share stays as it was dealt."""
    limits, dealt = Limits(visitors=4), Share(visitors=1, bandwidth=None)
    narrowed = Limits(visitors=4, visit_ports=(60001,), names=("shop",))
    user_limits = UserLimits("user", limits)
    user_limits.deal(dealt)
    shared = SharedLimits("user", limits, shares={"w1": dealt})
    for each in (narrowed, limits):
        user_limits.change(each)
        shared.change(each)
        assert (user_limits.share, shared.shares) == (dealt, {"w1": dealt})
        assert user_limits.limits == shared.limits == each
    more = Limits(visitors=5)
    user_limits.change(more)
    shared.change(more)
    assert (user_limits.share.visitors, shared.shares) == (5, {})
