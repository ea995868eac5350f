"""Row 25, teacher assistant: a student a hundred times smaller than its teacher, taught directly or in two steps."""

from __future__ import annotations

import statistics
import time
from functools import partial

from torch import nn

from edgemux.compression.distill.assistant import between, parameters
from edgemux.compression.distill.lesson import Lesson, taught
from edgemux.compression.distill.logits import SHARE, TEMPERATURE
from techniques import distill, reference, students
from techniques.row import Figure, Row

WIDTH = 3
EPOCHS, RATE = 10, 0.1
SEEDS = (1, 2, 3)


def rows(quick: bool) -> list[Row]:
    """One assistant, which the pass would make too, and students of three seeds."""
    start_s = time.monotonic()
    teacher = distill.teacher(quick)
    samples = reference.fashion(*students.counts(quick))
    epochs, seeds = (1, SEEDS[:1]) if quick else (EPOCHS, SEEDS)
    lessons = [Lesson(TEMPERATURE, SHARE, epochs, RATE, seed) for seed in seeds]

    def student(seed: int) -> nn.Module:
        return students.fresh(partial(reference.PlainNet, WIDTH), seed)

    assistant = taught(between(teacher, student(0), samples.train_x), teacher, samples, lessons[0])
    ways = {
        way: [taught(student(lesson.seed), by, samples, lesson) for lesson in lessons]
        for way, by in (("direct", teacher), ("assistant", assistant))
    }
    found = {way: [students.accuracy([net], samples) for net in nets] for way, nets in ways.items()}
    direct, stepped = (statistics.fmean(found[way]) for way in ("direct", "assistant"))
    size = len(students.graph_of(ways["direct"][0], samples).SerializeToString())
    sizes = " -> ".join(f"{parameters(net):,}" for net in (teacher, assistant, ways["direct"][0]))
    shown = {way: ", ".join(f"{100 * share:.2f}" for share in shares) for way, shares in found.items()}
    return [
        Row(
            25,
            "Teacher assistant",
            Figure(direct, size),
            Figure(stepped, size),
            "at least direct distillation across a large gap",
            f"{100 * (stepped - direct):+.2f} points ({shown['assistant']} against {shown['direct']})",
            stepped >= direct,
            f"{sizes} parameters, the assistant {students.percent(students.accuracy([assistant], samples))}; "
            f"{len(samples.train_x)} images, {epochs} epochs, {len(seeds)} seeds, which lie "
            f"{100 * max(max(shares) - min(shares) for shares in found.values()):.1f} points apart: a difference below "
            "that is none",
            time.monotonic() - start_s,
        )
    ]
