"""Grad-CAM against captum, channel maps and counts against the formula by hand, panels against what goes into them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import functional as transforms

from purity_cli import cam, run
from purity_cli.cam import panels
from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.purity import activation, map_statistics
from purity_cli.results import Result
from purity_cli.run.resolving import Resolved, resolve
from tests.core import oracle
from tests.views import made

# Names and layers: one that a following in-place ReLU overwrites, ReLUs, sums, concatenations.
NETWORKS = {
    "tiny_vgg_10": ["features.0", "features.3", "features.8"],
    "torchvision:resnet18": ["conv1", "bn1", "layer1.0.conv1", "layer3", "layer4.1.bn2", "layer4"],
    "torchvision:densenet121": ["features.norm0", "features.relu0", "features.denseblock2", "features.norm5"],
    "torchvision:squeezenet1_1": ["features.0", "features.1", "features.12"],
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two smooth pictures, not square."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(2):
            small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            small.resize((96, 72), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    return folder


def plan_of(model: str, layers: list[str], dataset: str, **settings: object) -> Resolved:
    weights = "default" if model == "tiny_vgg_10" else "none"
    job = Job.of(model=model, weights=weights, dataset=dataset, layers=tuple(layers), device="cpu", **settings)
    return resolve(job)


def pixels(plan: Resolved, i: int) -> torch.Tensor:
    """The network's input (1, 3, h, w) by torchvision's transforms."""
    image, p = plan.source.load(i), plan.preprocessing
    if isinstance(p.resize, int):
        image = transforms.resize(image, [p.resize], transforms.InterpolationMode(p.interpolation))
    if p.crop:
        image = transforms.center_crop(image, list(p.crop))
    return transforms.normalize(transforms.to_tensor(image), p.mean, p.std).unsqueeze(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_grad_cam_is_captums(name: str, photographs: Path) -> None:
    size = {} if name == "tiny_vgg_10" else {"resize": 64, "crop": 64}
    dataset = "digits" if name == "tiny_vgg_10" else str(photographs)
    plan = plan_of(name, NETWORKS[name], dataset, **size)
    images = [0, 3]
    views = cam.look(plan, images)
    net = plan.network.module
    modules = dict(net.named_modules())
    for i, view in zip(images, views, strict=True):
        x = pixels(plan, i)
        with oracle.OutOfPlace():
            logits = net(x)[0].detach()
            assert view.predicted == int(logits.argmax())
            assert view.score == pytest.approx(float(torch.softmax(logits, 0).max()), abs=1e-6)
            for layer in NETWORKS[name]:
                explain = LayerGradCam(net, modules[layer])
                expected = explain.attribute(x.requires_grad_(), view.predicted, relu_attributions=True)
                expected = expected[0, 0].detach().numpy()
                np.testing.assert_allclose(view.maps[layer], expected, rtol=1e-4, atol=1e-5 * expected.max())
    # Not that zeros agreed with zeros.
    assert all(max(view.maps[layer].max() for view in views) > 0 for layer in NETWORKS[name][-2:])


def test_the_picture_is_what_the_network_sees(photographs: Path) -> None:
    plan = plan_of("torchvision:resnet18", ["layer4"], str(photographs), resize=48, crop=(40, 44))
    (view,) = cam.look(plan, [1])
    expected = transforms.center_crop(transforms.resize(plan.source.load(1), [48]), [40, 44])
    assert np.array_equal(view.image, np.asarray(expected))


def test_the_ratio_of_a_channels_map_is_the_activation_that_purity_counts(photographs: Path) -> None:
    plan = plan_of("torchvision:resnet18", ["layer2", "bn1"], str(photographs), resize=64, crop=64)
    for layer in ("layer2", "bn1"):
        alone = replace(plan, taps=tuple(tap for tap in plan.taps if tap.module == layer))
        c = 128 if layer == "layer2" else 64
        (view,) = cam.look(alone, [0], partial(cam.channel_maps, channels=range(c)))
        maps = view.maps[layer]
        feature_map, gradient = oracle.map_and_gradient(plan.network.module, pixels(plan, 0), layer)
        beta = gradient.mean((1, 2))
        by_hand = np.maximum(beta[:, None, None] * feature_map, 0)
        np.testing.assert_allclose(maps, by_hand, rtol=1e-4, atol=1e-5 * by_hand.max())
        peak = by_hand.max((1, 2))
        ratio = np.divide(by_hand.mean((1, 2)), peak, out=np.zeros(c), where=peak > 0)
        counted = activation(map_statistics(torch.tensor(feature_map)[None]), torch.tensor(beta)[None])[0]
        np.testing.assert_allclose(counted.numpy(), ratio, rtol=1e-4, atol=1e-6)


def test_top_channels_are_sorted_and_ties_go_to_the_lower_number() -> None:
    assert cam.top_channels(np.array([1, 5, 0, 5, 2]), 3) == [(1, 5), (3, 5), (4, 2)]
    assert cam.top_channels(np.array([1, 2]), 5) == [(1, 2), (0, 1)]


def test_channels_fire_on_as_many_images_of_the_class_as_counted_by_hand() -> None:
    plan = plan_of("tiny_vgg_10", ["features.8"], "digits", per_class=12, thresholds=(0.25,))
    chosen = cam.of_classes(plan.source, [3, 7])
    heads = panels.Heads([], 0.25, "digits", False, False, partial(run.score, workers=1))
    shown = panels.channels(plan, chosen, 4, heads)
    assert [head.name for head in shown.headings] == ["C2 features.8", "no. 1", "no. 2", "no. 3", "no. 4"]
    assert plan.source.labels is not None
    for row, k in zip(shown.rows, (3, 7), strict=True):
        of_class = [i for i, label in enumerate(plan.source.labels) if label == k][:12]
        batch = torch.cat([pixels(plan, i) for i in of_class])
        counts = oracle.counts(plan.network.module, batch, "features.8", [0.25])[0]
        order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))[:4]
        said = [cell.label.split("\n")[:2] for cell in row.cells[1:]]
        assert said == [[f"channel {c}", f"{counts[c]} of 12"] if counts[c] else [""] for c in order]
        assert row.name == str(k)
        assert any(counts)


def test_headings_say_purity_and_of_how_many_images() -> None:
    plan = plan_of("tiny_vgg_10", ["C1", "all:C2", "features.0"], "digits", limit=30)
    result = run.score(plan, workers=1)
    heads = panels.Heads([], 0.5, "digits", False, False, lambda _: result)
    names = ["C1 features.3", "C2 features.8", "conv:C2 features.7", "pool:C2 features.9", "features.0"]
    assert [head.name for head in heads.of(plan)] == names
    for head, layer in zip(heads.of(plan), result.layers, strict=True):
        totals = layer.counts.sum(0)[result.thresholds.index(0.5)]
        n = int(totals.sum())
        assert head.purity == (f"F = {oracle.purity(totals):.3f}" if n else "F = –")
        few = "" if n >= 5 * 10 else f"\nN = {n} < 5 c" if n else "\nnothing fires"
        assert head.note == f"n = 30{few}"


def stored(model: str, weights: str, dataset: str, sha: str | None) -> Result:
    result = made.result(model, [made.layer("features.8", "C2")], weights=weights)
    return replace(result, source="bundled", dataset=dataset, provenance={"weights_sha256": sha})


def test_stored_purity_is_taken_of_the_same_network_only() -> None:
    plan = plan_of("tiny_vgg_10", ["C2"], "digits", limit=5)
    sha = plan.network.weights_sha256
    fitting = stored("tiny_vgg_10", "digits", "digits", sha)
    others = [stored("tiny_vgg_10", "digits", "digits", "0" * 64), stored("tiny_vgg", "digits", "digits", sha)]

    def heads(*results: Result) -> panels.Heads:
        return panels.Heads(results, 0.5, "digits", False, False, lambda _: pytest.fail("scored again"))

    (head,) = heads(*others, fitting, stored("tiny_vgg_10", "digits", "elsewhere", sha)).of(plan)
    totals = fitting.layers[0].counts.sum(0)[fitting.thresholds.index(0.5)]
    assert head.purity == f"F = {oracle.purity(totals):.3f}"
    assert head.note.startswith("n = 400 of digits")
    with pytest.raises(PurityError, match="None of the results of --from is of features.8 of tiny_vgg_10"):
        heads(*others).of(plan)


def test_columns_name_what_differs_and_rows_carry_each_networks_prediction() -> None:
    plans = [plan_of("tiny_vgg_10", ["last"], "digits", limit=20) for _ in range(2)]
    chosen = cam.first(plans[0].source, 3)
    heads = panels.Heads([], 0.5, "digits", False, True, partial(run.score, workers=1))
    shown = panels.grad_cams(iter(plans), chosen, heads)
    assert [head.name for head in shown.headings] == ["image", *["digits\nC2 features.8"] * 2]
    views = cam.look(plans[0], chosen.images)
    for row, view in zip(shown.rows, views, strict=True):
        picture, *cells = row.cells
        assert (picture.label, picture.map) == ("", None)
        for cell in cells:
            assert cell.label.split("\n")[0] == f"{view.predicted} {view.score:.2f}"
            assert cell.map is not None
            np.testing.assert_allclose(cell.map, view.maps["features.8"], rtol=1e-4, atol=1e-6)


def test_logits_that_are_not_finite_are_refused() -> None:
    plan = plan_of("tiny_vgg_10", ["last"], "digits", limit=5)
    (*_, last) = [module for module in plan.network.module.modules() if isinstance(module, torch.nn.Linear)]
    last.bias.data[0] = np.nan
    with pytest.raises(PurityError, match="logits of tiny_vgg_10 hold a NaN"):
        cam.look(plan, [0])


# Pictures


def test_files_are_shown_in_the_order_given_and_a_bad_one_is_named(photographs: Path, tmp_path: Path) -> None:
    files = [str(photographs / "dog" / "1.png"), str(photographs / "cat" / "0.png")]
    chosen = cam.of_files(files)
    assert list(chosen.names) == ["1.png", "0.png"]
    for i, file in enumerate(files):
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(chosen.source.load(i)), np.asarray(image))
    with pytest.raises(PurityError, match="There is no image nowhere.png"):
        cam.of_files(["nowhere.png"])
    (tmp_path / "bad.png").write_text("no picture")
    plan = plan_of("tiny_vgg_10", ["last"], "digits")
    with pytest.raises(PurityError, match=r"bad.png cannot be read \(not an image of a known kind"):
        cam.look(replace(plan, source=cam.of_files([str(tmp_path / "bad.png")]).source), [0])


def test_classes_are_found_by_name_words_or_number(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    source = open_dataset(str(tmp_path))
    assert [cam.find_class(source, text) for text in ("n01443537", "goldfish", "1")] == [1, 1, 1]
    assert cam.of_classes(source, [1, 0]).names == ["goldfish", "tench"]
    with pytest.raises(PurityError, match="no class 'goldfisch': it has 2, from n01440764 .*Did you mean goldfish"):
        cam.find_class(source, "goldfisch")
    with pytest.raises(PurityError, match="no class '2'"):
        cam.find_class(source, "2")


# Panels


def smooth(h: int, w: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((h, w), dtype=np.float32)


def picture(h: int, w: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_a_map_is_scaled_between_its_extremes_and_a_constant_one_has_none() -> None:
    assert panels.scaled(np.array([[1.0, 3.0], [2.0, 5.0]])).tolist() == [[0, 0.5], [0.25, 1]]
    assert panels.scaled(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]
    assert panels.scaled(np.full((1, 1), 0.3)).tolist() == [[1]]


@pytest.mark.parametrize("colours", ["jet", "viridis"])
def test_an_overlay_mixes_the_picture_with_the_map_resized_bicubically(colours: str) -> None:
    below, values = picture(40, 56), smooth(5, 7)
    small = torch.tensor(panels.scaled(values))[None, None]
    # torch's bicubic with antialias has PIL's kernel, a = -1/2
    large = F.interpolate(small, (40, 56), mode="bicubic", antialias=True)[0, 0].clamp(0, 1).numpy()
    mixed = 0.7 * below + 0.3 * 255 * mpl.colormaps[colours](large)[..., :3]
    assert np.abs(panels.overlay(below, values, colours, 0.3).astype(float) - mixed).max() <= 2.5
    assert np.array_equal(panels.overlay(below, values, colours, 0.0), below)


def test_a_panel_draws_each_cell_in_its_place() -> None:
    cells = [[panels.Tile(picture(200, 180, 2 * i + j), smooth(6, 6, i), f"label {i}{j}") for j in range(2)]
             for i in range(3)]  # fmt: skip
    cells[2][1] = panels.Tile(None)
    rows = [panels.TileRow(f"row {i}", line) for i, line in enumerate(cells)]
    figure = panels.panel([panels.Heading("a", "F = 0.5", "n = 3"), panels.Heading("b")], rows, "caption", "jet", 0.4)
    (ax,) = figure.axes
    assert len(ax.images) == 5
    assert all(b.get_extent()[0] > a.get_extent()[1] for a, b in [ax.images[:2], ax.images[2:4]])
    assert all(
        b.get_extent()[3] > a.get_extent()[2] for a, b in [ax.images[::2][:2], ax.images[1:5:2], ax.images[2::2]]
    )
    for drawn, cell in zip(ax.images, [cell for line in cells for cell in line], strict=False):
        assert cell.image is not None
        assert cell.map is not None
        assert np.array_equal(np.asarray(drawn.get_array()), panels.overlay(cell.image, cell.map, "jet", 0.4))
        left, right, bottom, top = drawn.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(180 / 200)
    texts = {text.get_text(): text for text in ax.texts}
    assert {"a", "b", "F = 0.5", "n = 3", "caption", "row 2", "label 20"} <= set(texts)
    assert texts["F = 0.5"].get_fontweight() == "bold"
    assert texts["a"].get_fontweight() != "bold"


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    small = picture(32, 32)
    figure = panels.panel([panels.Heading("a")], [panels.TileRow("", [panels.Tile(small)])], "", "jet", 0.5)
    assert np.array_equal(np.asarray(figure.axes[0].images[0].get_array())[2::5, 2::5], small)


def nothing_overlaps(figure: Figure) -> None:
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    boxes += [("a picture", ax.get_window_extent()) for ax in figure.axes[0].images]
    x0, y0, x1, y1 = np.array([box.padded(-0.5).extents for _, box in boxes]).T
    apart = (x0[:, None] >= x1) | (x0 >= x1[:, None]) | (y0[:, None] >= y1) | (y0 >= y1[:, None])
    over = [(boxes[i][0], boxes[j][0]) for i, j in np.argwhere(~apart) if i < j]
    assert over == []
    assert min(x0.min(), y0.min()) >= -1
    assert x1.max() <= figure.bbox.x1 + 1
    assert y1.max() <= figure.bbox.y1 + 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 12)])
def test_1_to_16_pictures_and_1_to_12_layers_fit(rows: int, columns: int) -> None:
    long = "tf_efficientnetv2_s.in21k_ft_in1k\nfeatures.denseblock4.denselayer32.conv2"
    heads = [
        panels.Heading("picture"),
        *[panels.Heading(long, "F = 0.123", "n = 11,000 of imagenet\nN = 12 < 5 c")] * columns,
    ]
    name = "a black-and-tan coonhound, as a class may be called"
    cells = [
        panels.Tile(picture(40, 30 + 20 * (i % 2)), smooth(4, 4), f"{name} 0.99" if i else "")
        for i in range(columns + 1)
    ]
    figure = panels.panel(
        heads, [panels.TileRow("ILSVRC2012_val_00000293.JPEG", cells)] * rows, "caption " * 30, "jet", 0.5
    )
    nothing_overlaps(figure)
