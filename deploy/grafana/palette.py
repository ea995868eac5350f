"""The colours of the dashboards, and what each of them means.

Each has a contrast of 3:1 or more against the background of either of Grafana's themes, and any two of them stay apart
for people who see less red, green or blue: they were found by a search for the seven that are farthest apart then.
tests/house/test_palette.py measures both.
"""

from __future__ import annotations

BLUE = "#0061D5"
ORANGE = "#EA700C"
GREEN = "#519150"
RED = "#D01F25"
PINK = "#99629F"
SKY = "#139AE6"
GREY = "#958D86"
# The backgrounds of a panel in Grafana's two themes.
LIGHT, DARK = "#FFFFFF", "#181B1F"

ROUTES = {"edge": BLUE, "cloud": ORANGE, "split": GREEN}
BREAKER = {0: ("closed", BLUE), 1: ("half-open", ORANGE), 2: ("open", RED)}
YES_NO = {0: ("no", BLUE), 1: ("yes", RED)}
CHOSEN = {0: ("not now", GREY), 1: ("chosen", BLUE)}
ALONE = {1: ("left alone", ORANGE)}
SCRAPED = {0: ("not scraped", RED), 1: ("scraped", BLUE)}
GOOD, WARNING, BAD = BLUE, ORANGE, RED

# Reasons by what they have in common: choices, constraints of the device, and, all in red, failures of the cloud. See
# Reason in multiplexer/edgemux/multiplexer/domain.py.
REASONS = {
    "confident": BLUE,
    "offloaded": ORANGE,
    "deferred": SKY,
    "device_busy": GREY,
    "budget": PINK,
    "link": GREEN,
} | dict.fromkeys(
    (
        "breaker",
        "cloud_timeout",
        "cloud_unreachable",
        "cloud_tls",
        "cloud_denied",
        "cloud_overloaded",
        "cloud_bad_answer",
        "cloud_incompatible",
    ),
    RED,
)
# Why splits are left alone: settings, the device, its heads, tails in the cloud.
LEFT_ALONE = (
    dict.fromkeys(("off", "loses_too_much"), GREY)
    | dict.fromkeys(("memory", "device_busy"), SKY)
    | dict.fromkeys(("head_wrong", "head_failed", "passes_input_on"), RED)
    | dict.fromkeys(("cloud_incompatible", "cloud_denied", "tail_failing"), ORANGE)
)
AUDITS = {"agree": BLUE, "differ": RED, "failed": GREY}
CALLS = {
    "answered": BLUE,
    "timeout": ORANGE,
    "overloaded": PINK,
    "unreachable": RED,
    "denied": GREY,
    "incompatible": GREEN,
    "bad_answer": SKY,
}
OUTCOMES = {
    "answered": BLUE,
    "refused": PINK,
    "expired": ORANGE,
    "invalid": GREY,
    "cancelled": GREEN,
    "failed": RED,
}
REFUSALS = {"full": PINK, "wait": ORANGE, "expired": RED, "draining": GREY}
STAGES = {"validate": GREY, "pre_gate": SKY, "device": BLUE, "post_gate": PINK, "cloud": ORANGE}
BUDGETS = {"offloads": ORANGE, "bytes": BLUE, "joules": PINK, "money": GREEN}
# The levels of the starter bundle; those of other bundles get Grafana's own colours.
VARIANTS = {"level1": PINK, "level2": GREEN, "level3": SKY, "level4": BLUE, "cloud": ORANGE}
AGENT_REFUSALS = {
    "overloaded": PINK,
    "expired": ORANGE,
    "failed": RED,
    "cancelled": GREEN,
    "input": GREY,
    "too_large": SKY,
    "unknown_model": BLUE,
}
# How a certificate stands, in the order of the numbers that the state panels show.
STANDINGS = {"none": GREY, "unwatched": SKY, "in_force": BLUE, "re_certified": GREEN, "withdrawn": RED}
STANDING = {number: (name.replace("_", " "), colour) for number, (name, colour) in enumerate(STANDINGS.items())}
CAUSES = {"audits": RED, "score_shift": PINK, "input_shift": ORANGE, "other_model": GREEN, "watch_failed": GREY}
DIRECTIONS = {"raise": BLUE, "lower": ORANGE}
# Shares of the CPU and of time, and CPUs.
SENSORS = {
    "cpu_others": BLUE,
    "cpu_pressure": ORANGE,
    "cpu_speed": GREEN,
    "cpu_count": BLUE,
    "cpu_quota": ORANGE,
    "memory_pressure": BLUE,
    "io_pressure": ORANGE,
}
# What a line of any model is drawn as.
ENDS = {".* high": ORANGE, ".* low": BLUE, ".* promised": GREY}
BOUND = {"(?!.* promised$).*": BLUE, ".* promised": GREY}
