"""Teacher assistants: a gap in size that is too wide to learn across is crossed in steps (Mirzadeh et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from edgemux.compression.distill.lesson import Lesson, taught
from edgemux.compression.prune.channels import pruned
from edgemux.compression.samples import Samples
from edgemux.multiplexer.errors import PassError

# (net, inputs float32 [n, ...], share of the channels to take away) -> a thinner copy
Thin = Callable[[nn.Module, Tensor, float], nn.Module]


def through_assistants(
    teacher: nn.Module, assistants: Sequence[nn.Module], student: nn.Module, samples: Samples, lesson: Lesson
) -> nn.Module:
    """Teach every assistant by the one before it, and the student by the last; ``student`` is returned.

    assistants: from the largest to the smallest; they and the student are trained in place, the teacher stays as it
    is. Without assistants this is plain distillation.
    """
    for pupil in (*assistants, student):
        teacher = taught(pupil, teacher, samples, lesson)
    return teacher


def removed_share(teacher: int, student: int) -> float:
    """Share of the channels to take from a net of ``teacher`` parameters to come halfway to ``student`` ones.

    Halfway is the geometric mean of the two: steps of equal ratio. Parameters go with the square of the width, so the
    width that stays is the fourth root of the ratio. 0 < student < teacher; the result is above 0 and below 1.
    """
    return 1.0 - (student / teacher) ** 0.25


def by_magnitude(net: nn.Module, x: Tensor, share: float) -> nn.Module:
    """A copy without the channels whose weights have the smallest L1 norms (Li et al. 2017), not trained on."""
    return pruned(net, x, "l1", share, refit=False)


def between(teacher: nn.Module, student: nn.Module, x: Tensor, thin: Thin = by_magnitude) -> nn.Module:
    """An assistant of about the geometric mean of both sizes, made from the teacher's own weights.

    x: float32 [n, ...], the training inputs. Raises PassError when the teacher cannot be thinned.
    """
    share = removed_share(parameters(teacher), parameters(student))
    try:
        return thin(teacher, x, share)
    except PassError as error:
        raise PassError(f"distill: no assistant can be made of the original ({error})") from error


def parameters(net: nn.Module) -> int:
    """How many parameters a net has."""
    return sum(parameter.numel() for parameter in net.parameters())
