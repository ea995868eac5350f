"""Rows 4 ..."""

import time


def test_smoke(on_stage, report):
    s = on_stage
    with s.load() as load:
        load.more(60)
        s.proxy.stall()
        load.more(120)
        s.proxy.heal()
        t = time.monotonic()
        first = load.first(lambda e: e.route == "cloud", 5, since_s=t)
        load.more(40)
    from collections import Counter

    print(Counter((e.outcome, e.route, e.reason) for e in load.entries), s.pictures.doubtful, load.worst_lag_s)
    f = s.found(4, "black hole both ways", load, first.ended_s - t)
    report(f)
    v = s.judge(load)
    assert not v.faults, v.faults
