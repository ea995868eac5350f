"""`edgemux build`: from a recipe to a bundle, stage by stage.

Gates and certificate come after export: they are fitted to what the files answer that are shipped, rounding included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress

from edgemux.compression import cloud, data, measure, models, multiplex, pack, places
from edgemux.compression import recipe as recipes
from edgemux.compression.data import DataSet
from edgemux.compression.distill import family, teacher
from edgemux.compression.own import plan as plans
from edgemux.compression.recipe import Recipe
from edgemux.compression.workshop import Workshop
from edgemux.multiplexer.bundle import Bundle
from edgemux.multiplexer.errors import ConfigError


def build(
    recipe_path: Path,
    out: Path | None = None,
    quick: bool = False,
    work: Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
    models_of: Path | None = None,
) -> Path:
    """Build the bundle of a recipe and return its directory. A recipe with ``[models]`` is for models that are there.

    out: where the bundle goes, by default a folder named like the recipe; an older bundle there is replaced.
    quick: a few images and epochs, every stage for real. work: where stages are kept, by default the user's cache;
    a build that was interrupted, or whose recipe changed in part, does again only what it must. tell: is called with
    what a reader should know about the result. models_of: a bundle whose models are taken as they are, so that only
    the multiplexer is fitted and certified again.

    Raises ConfigError for the recipe, ``out`` or ``models_of``, ArtifactError for the data or a damaged bundle,
    PassError when a file fails its check.
    """
    sha256 = hashlib.sha256(recipes.read(recipe_path)).hexdigest()
    name = f"{recipe_path.name}{' (quick)' if quick else ''}"
    if plans.is_plan(recipe_path):
        if models_of is not None:
            raise ConfigError(f"--models: {recipe_path.name} names its models itself")
        own = plans.load(recipe_path)
        return _of_own(own, recipe_path.parent, name, sha256, out, quick, work, progress, tell)
    plan = recipes.load(recipe_path)
    target = out if out is not None else Path(plan.name)
    pack.check_target(target)
    if quick:
        plan = recipes.quick(plan)
    workshop = Workshop(work if work is not None else default_work(), progress)
    images = data.load(plan.data.set, plan.data.held_out, plan.seed, plan.data.limit)
    at_models = _models(workshop, plan, images) if models_of is None else _taken(workshop, plan, models_of)
    parts = _multiplexer(workshop, plan, images, at_models)
    return pack.write(plan, name, sha256, images, parts, sum(workshop.seconds.values()), target)


def build_own(
    plan: plans.Plan,
    out: Path | None = None,
    quick: bool = False,
    work: Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """The same for a plan that is not in a file, whose paths are relative to the current directory; it needs a name."""
    plans.check(plan, "build")
    sha256 = recipes.digest(plans.without_places(plan))
    return _of_own(plan, Path(), f"options{' (quick)' if quick else ''}", sha256, out, quick, work, progress, tell)


def _of_own(
    plan: plans.Plan,
    root: Path,
    recipe: str,
    sha256: str,
    out: Path | None,
    quick: bool,
    work: Path | None,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> Path:
    from edgemux.compression.own.build import build as build_of_own

    assert plan.name is not None
    target = out if out is not None else Path(plan.name)
    workshop = Workshop(work if work is not None else default_work(), progress)
    return build_of_own(plans.quick(plan) if quick else plan, root, recipe, sha256, target, workshop, tell)


def default_work() -> Path:
    """Where stages are kept between builds."""
    return places.cache("build")


def _taken(workshop: Workshop, plan: Recipe, models_of: Path) -> Path:
    """The models of a bundle that is there already."""
    source = Bundle.open(models_of)
    if len(source.manifest.levels) != plan.family.levels:
        raise ConfigError(f"--models: has {len(source.manifest.levels)} levels, the recipe {plan.family.levels}")
    return workshop.stage("models", lambda folder, _: models.take(source, folder), source.manifest.digest)


def _models(workshop: Workshop, plan: Recipe, images: DataSet) -> Path:
    """Cloud model, teacher outputs, nested family, ONNX files: the folder of the last."""
    at_cloud = workshop.stage(
        "cloud",
        lambda folder, tick: cloud.train(plan.cloud, images.train, plan.seed, folder, tick),
        plan.seed,
        plan.data,
        plan.cloud,
    )
    at_teacher = workshop.stage(
        "teacher",
        lambda folder, tick: teacher.write(cloud.load(plan.cloud, at_cloud), images.train, folder, tick),
        at_cloud.name,
    )
    at_family = workshop.stage(
        "family",
        lambda folder, tick: family.train(plan.family, images.train, teacher.read(at_teacher), plan.seed, folder, tick),
        at_teacher.name,
        plan.family,
    )
    return workshop.stage(
        "models",
        lambda folder, tick: models.write(
            cloud.load(plan.cloud, at_cloud),
            family.load(plan.family, at_family),
            images.gate,
            plan.quantise,
            folder,
            tick,
        ),
        at_family.name,
        plan.quantise,
    )


def _multiplexer(workshop: Workshop, plan: Recipe, images: DataSet, at_models: Path) -> pack.Parts:
    """Answers of the files, gates, certificate, measurements."""
    levels = plan.family.levels
    at_answers = workshop.stage(
        "answers",
        lambda folder, tick: multiplex.write_answers(at_models, levels, images, folder, tick),
        at_models.name,
    )
    at_gates = workshop.stage(
        "gates",
        lambda folder, tick: multiplex.write_gates(at_answers, plan.gates, plan.seed, folder, tick),
        at_answers.name,
        plan.gates,
    )
    at_prices = workshop.stage(
        "prices",
        lambda folder, _: multiplex.write_prices(
            at_answers, at_gates, images.certify.sha256(), plan.certify, plan.gates, folder
        ),
        at_gates.name,
        plan.certify,
    )
    prices = multiplex.read_prices(at_prices)
    exported = models.read_report(at_models)
    at_figures = workshop.stage(
        "measure",
        lambda folder, _: measure.write(at_models, at_answers, at_gates, prices, exported, plan.pack.repeats, folder),
        at_prices.name,
        plan.pack.repeats,
    )
    return pack.Parts(at_models, at_gates, exported, prices, measure.read(at_figures))
