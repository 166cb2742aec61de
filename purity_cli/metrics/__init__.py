"""The measures of a layer: an entry each in `METRICS`, from which options, validation, columns and help follow.

A measure is a function of the arrays of an accumulator (see `accumulators`), which add over batches, ranks and runs.
Nothing here imports torch or numpy before a measure is taken, since every command's help reads `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.plugins import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from purity_cli.metrics.accumulators import Accumulator

    Arrays = Mapping[str, NDArray[Any]]

Number = int | float


def _later(module: str, name: str) -> Callable[[], Any]:
    """What `module` calls `name`, imported when it is asked for."""
    return lambda: getattr(import_module(module), name)


@dataclass(frozen=True)
class Parameter:
    """A number that a measure takes; whole where its default is."""

    default: Number
    about: str
    least: Number
    most: Number = math.inf

    def read(self, text: str) -> Number:
        """The number written, in its range; ValueError says in words what is wrong with it."""
        try:
            value = type(self.default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(self.default, int) else "a number"
            raise ValueError(f"{text!r} is not {kind}") from None
        if not self.least <= value <= self.most:
            raise ValueError(f"{text} is not between {self.least:g} and {self.most:g}")
        return value


@dataclass(frozen=True)
class Measure:
    """One measure of a layer."""

    name: str
    """As in `--metrics`."""
    columns: tuple[str, ...]
    """Where its values stand."""
    about: str
    """What it says of a layer, in a few words."""
    convention: str
    """Which of the definitions in use it is, where they give different values; it stands in `run.json`."""
    reference: str
    accumulator: Callable[[], type[Accumulator]]
    """The class whose arrays it is made of; measures of one class share its arrays."""
    function: Callable[[], Callable[..., Mapping[str, Any]]]
    """The pure function (arrays, **parameters) -> a value for each column, NaN where there is none to be had."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    gradient: bool = False
    """Whether it needs gradients, and so a network that predicts classes."""
    labels: bool = False
    """Whether it needs the images' labels."""
    check: Callable[[Mapping[str, Number]], str | None] = lambda parameters: None
    """What is wrong with parameters that are each in their range, as a clause."""

    def values(self, arrays: Arrays, **parameters: Number) -> Mapping[str, Any]:
        """Its columns, from the arrays of one tapped layer."""
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        return self.function()(arrays, **{**defaults, **parameters})


_SPECTRUM = "purity_cli.metrics.spectrum"
_MOMENTS = _later("purity_cli.metrics.accumulators", "SecondMoments")

_OWN = {
    measure.name: measure
    for measure in (
        Measure(
            name="purity",
            columns=("purity", "se", "purity_jk"),
            about="how evenly channels fire; always measured",
            convention="SPEC; at every threshold, with the jackknife's standard error and without its bias",
            reference="Chen, Cong, Huang 2021, doi 10.3788/LOP202158.2211004",
            accumulator=_later("purity_cli.metrics.accumulators", "FiringCounts"),
            function=_later("purity_cli.stats", "measure"),
            gradient=True,
        ),
        Measure(
            name="rankme",
            columns=("rankme",),
            about="smooth rank of the features",
            convention="exp of the entropy of p_k = s_k / sum s + epsilon over the min(n, c) singular values s of the "
            "features, which are not centred; epsilon 1e-7 as in the paper, while others take 1e-5",
            reference="Garrido, Balestriero, Najman, LeCun 2023, ICML, arXiv 2210.02885; compares networks of one kind",
            accumulator=_MOMENTS,
            function=_later(_SPECTRUM, "rankme"),
            parameters={"epsilon": Parameter(1e-7, "what is added to each p_k", 0.0, 1.0)},
        ),
        Measure(
            name="alpha-req",
            columns=("alpha_req",),
            about="exponent of the spectrum's decay",
            convention="eigenvalues number first .. last of the features' covariance, each with the weight 1 / j; "
            "4 .. 100 as in the authors' code, while others begin at 11",
            reference="Agrawal, Mondal, Ghosh, Richards 2022, NeurIPS; best near 1 by the authors' account",
            accumulator=_MOMENTS,
            function=_later(_SPECTRUM, "alpha_req"),
            parameters={
                "first": Parameter(4, "the first eigenvalue of the fit", 1),
                "last": Parameter(100, "the last eigenvalue of the fit", 3),
            },
            check=lambda given: None if given["last"] >= given["first"] + 2 else "last must be first + 2 or more",
        ),
        Measure(
            name="participation-ratio",
            columns=("participation_ratio",),
            about="number of directions that share the variance",
            convention="(sum l)^2 / sum l^2 over the eigenvalues l of the features' covariance, so centred",
            reference="Gao et al. 2017, bioRxiv 214262; Recanatesi et al. 2019, arXiv 1906.00443",
            accumulator=_MOMENTS,
            function=_later(_SPECTRUM, "participation_ratio"),
        ),
        Measure(
            name="stable-rank",
            columns=("stable_rank",),
            about="squared norm over the largest squared singular value",
            convention="||Z||_F^2 / ||Z||_2^2 of the features Z, which are not centred",
            reference="Rudelson, Vershynin 2007, J. ACM 54(4)",
            accumulator=_MOMENTS,
            function=_later(_SPECTRUM, "stable_rank"),
        ),
        Measure(
            name="saturation",
            columns=("saturation",),
            about="share of directions that hold the variance",
            convention="the fewest leading eigenvalues of the features' covariance that hold the share delta of the "
            "variance, over c; dead channels count in c",
            reference="Shenk, Richter, Arpteg, Huss 2019, arXiv 1907.08589 (delve)",
            accumulator=_MOMENTS,
            function=_later(_SPECTRUM, "saturation"),
            parameters={"delta": Parameter(0.99, "the share of the variance", 0.0, 1.0)},
        ),
    )
}

METRICS: Registry[Measure] = Registry("purity_cli.metrics", Measure, _OWN)
"""Every measure, in the order of its columns."""

PURITY = _OWN["purity"]


def columns() -> list[str]:
    """The columns of all measures but purity, which every table has anyway."""
    return [column for measure in METRICS.values() if measure is not PURITY for column in measure.columns]


def names() -> list[str]:
    """What `--metrics` takes beside purity."""
    return [name for name, measure in METRICS.items() if measure is not PURITY]


def parse(written: str | Sequence[str]) -> tuple[str, ...]:
    """`rankme:epsilon=1e-5,alpha-req` -> the same in one order, without what is the default; PurityError.

    Several parameters of one measure stand behind each other: `alpha-req:first=11:last=50`. Purity may be named, and is
    left out: it is always measured.
    """
    if not isinstance(written, (str, list, tuple)):
        raise PurityError(f"{written!r} is no list of metrics: write their names.")
    parts = written.split(",") if isinstance(written, str) else written
    found: dict[str, str] = {}
    for part in (str(part).strip() for part in parts):
        if not part:
            continue
        measure, parameters = read(part)
        if measure.name in found:
            raise PurityError(f"{measure.name} stands twice among the metrics: a result has room for one of each.")
        changed = {name: value for name, value in parameters.items() if value != measure.parameters[name].default}
        found[measure.name] = ":".join([measure.name, *(f"{name}={value!r}" for name, value in changed.items())])
    return tuple(found[name] for name in METRICS if name in found and name != PURITY.name)


def read(written: str) -> tuple[Measure, dict[str, Number]]:
    """`rankme:epsilon=1e-5` -> the measure and all its parameters; PurityError where there is no such thing."""
    name, *settings = (part.strip() for part in written.split(":"))
    if name not in METRICS:
        raise PurityError(f"No metric {name!r}: there are {', '.join(METRICS)}.{did_you_mean(name, METRICS)}")
    measure = METRICS[name]
    values = {key: parameter.default for key, parameter in measure.parameters.items()}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or key not in values:
            known = ", ".join(f"{key}={parameter.default:g}" for key, parameter in measure.parameters.items())
            raise PurityError(
                f"{name} has no parameter {setting!r}: it has {known or 'none'}.{did_you_mean(key, values)}"
            )
        try:
            values[key] = measure.parameters[key].read(text)
        except ValueError as error:
            raise PurityError(f"{key} of {name}: {error}.") from None
    if wrong := measure.check(values):
        raise PurityError(f"{written}: {wrong}.")
    return measure, values


def about(asked: Iterable[str]) -> list[dict[str, Any]]:
    """What `run.json` says of the measures asked for: columns, parameters, convention and reference."""
    return [
        {
            "metric": one.name,
            "columns": [*one.columns],
            **given,
            "convention": one.convention,
            "reference": one.reference,
        }
        for one, given in map(read, asked)
    ]
