"""The threshold that --suggest names, against its formula written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from purity_cli.errors import PurityError
from purity_cli.plan import DEFAULT_GRID
from purity_cli.results import Layer
from purity_cli.views import cells, sweep
from tests.core import oracle
from tests.views import made


def criterion(layers: list[Layer], t: int, least: int, groups: int = 20) -> float:
    """D(t)^2 from the oracle's purity; -inf where a layer fires less than `least` times per channel or has no error."""
    purities: list[float] = []
    variances: list[float] = []
    for layer in layers:
        counts = layer.counts[:, t]
        if counts.sum() < max(1, least * counts.shape[1]):
            return -np.inf
        purities.append(oracle.purity(counts.sum(0)))
        left = [oracle.purity(np.delete(counts, g, 0).sum(0)) for g in range(groups)]
        variances.append((groups - 1) / groups * sum((f - sum(left) / groups) ** 2 for f in left))
    if np.isnan(variances).any():
        return -np.inf
    return float(np.var(purities, ddof=1) - sum(variances) / len(variances))


@pytest.mark.parametrize("seed", range(5))
def test_the_suggestion_is_the_largest_spread_beyond_chance(seed: int) -> None:
    layers = made.stages(4, seed=seed)
    found = sweep.suggest(made.result("net", layers))
    values = [criterion(layers, t, least=5) for t in range(len(DEFAULT_GRID))]
    assert -np.inf in values
    assert found.threshold == DEFAULT_GRID[int(np.argmax(values))]
    assert found.spread == pytest.approx(np.sqrt(max(values)), abs=1e-12)
    assert not found.starved


def test_layers_that_never_fire_take_no_part() -> None:
    both = made.stages(3)
    assert sweep.suggest(made.result("net", made.stages(4, silent=(4,)))) == sweep.suggest(made.result("net", both))


def test_where_all_thresholds_are_starved_the_best_of_those_is_named_as_such() -> None:
    few = [made.layer(f"layer{i}", seed=i, n=6) for i in range(3)]
    found = sweep.suggest(replace(made.result("net", few), n_images=6))
    values = [criterion(few, t, least=0, groups=6) for t in range(len(DEFAULT_GRID))]
    assert found.threshold == DEFAULT_GRID[int(np.argmax(values))]
    assert found.starved
    assert "fires less than 5 times per channel" in str(found)


def test_one_layer_cannot_differ() -> None:
    with pytest.raises(PurityError, match="net has 1 layer that fired: --suggest compares two or more"):
        sweep.suggest(made.result("net", made.stages(2, silent=(1,))))


def test_thresholds_are_picked_and_a_missing_one_is_named() -> None:
    whole = made.result("net", made.stages(2))
    every = cells.rows([whole])
    picked = sweep.sweep([whole], [0.9, 0.1]).main.rows
    assert repr(picked) == repr([row for row in every if row["threshold"] in (0.1, 0.9)])  # NaN is NaN
    # F at a rate is interpolated between all stored thresholds, whichever are shown.
    assert {row["purity_rate"] for row in picked} == {row["purity_rate"] for row in every}
    with pytest.raises(PurityError, match=r"no counts of net at the threshold 0.12, only at 0.05, 0.1"):
        sweep.sweep([whole], [0.1, 0.12])


def test_layers_are_picked_by_row_stage_path_or_glob() -> None:
    conv = replace(made.layer("layer3.1.conv2", "C3"), reading="conv")
    one = made.result("net", [*made.stages(3), conv, made.layer("conv9")])

    def picked(*names: str) -> list[str]:
        return [layer.name for result in sweep.only([one], names) for layer in result.layers]

    assert picked("C1", "layer3", "conv?") == ["C1", "C3", "conv9"]
    assert picked("conv:C3") == picked("conv:*") == ["conv:C3"]
    assert len(picked("*")) == 5
    assert sweep.only([one, made.result("other", made.stages(1))], ["C3"])[0].model == "net"
    with pytest.raises(PurityError, match=r"No layer 'conv8' was scored, only C1, .*conv9. Did you mean conv9"):
        picked("C1", "conv8")
