"""Redis Cluster places keys by their hash tag."""

from core import keys


def test_all_keys_of_a_shard_share_its_hash_tag_and_no_two_are_equal() -> None:
    topic = "poll.p1"
    names = [
        keys.events(3), keys.updates(3), keys.dead(3), keys.epochs(3), keys.counters(3), keys.definition(3, topic),
        keys.seen(3, topic), keys.hook(3, topic), keys.state(3, topic), keys.voters(3, topic), keys.topics(3),
        keys.timers(3), keys.progress(3), keys.archive(3, "events"), keys.archive(3, "updates"),
        keys.new_voters(3, topic), keys.mend(3, "events"), keys.mend_tries(3, "events"), keys.mend_parked(3, "events"),
        keys.lease(3, "state"), keys.fence(3, "state"), keys.lease(3, "archive"),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    for name in names:
        assert name[name.index("{") : name.index("}") + 1] == "{s03}"
