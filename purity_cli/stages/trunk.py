"""The rule by which any network has stages: from one forward pass, without a look at names.

The trunk is what an image runs through: the root's children in the order in which they run, and the children of those
that down-sample more than once. A stage is the last element of the trunk before each down-sampling and before the
global pooling or the flattening. Poolings are no stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from purity_cli.stages.probe import Call, LayerInfo, Layers, Size

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.FractionalMaxPool2d)
STRIDE = 4
"""A larger one that leaves a single place is the global pooling."""


def find(net: nn.Module, layers: Layers) -> list[str]:
    """The stages that the rule gives, shallow to deep; none where no module gives a map of the image."""
    elements = sorted(_trunk(net, layers), key=lambda path: layers[path].ran[0].begin)
    stages: list[str] = []
    latest, gave = None, 0  # the last element that may be a stage, and the places that the trunk has come down to
    for number, path in enumerate(elements):
        call = layers[path].ran[0]
        takes, gives = _places(call.takes) or gave, _places(call.gives)
        if _is_global_pooling(path, layers, net) or (takes == 1 and gave > STRIDE**2):
            if all(_places(layers[later].ran[0].gives) == 1 for later in elements[number:]):
                break
            continue  # a branch aside, as a gate
        if gave and min(takes, gives) > gave:
            continue  # a branch aside that has not come down yet
        if latest and min(takes, gives) < gave:
            stages.append(latest)
            latest = None
        if not isinstance(net.get_submodule(path), POOLS):
            latest = path
        gave = gives
    return [*stages, latest] if latest else stages


def before_attention(layers: Layers) -> str | None:
    """Where to read a network that predicts from its class token: the last normalisation before its last attention.

    Behind that attention nothing reads the patches' tokens any more, so they get no gradient. None for other networks.
    """
    if not layers.from_class_token:
        return None
    ended = [layer for layer in layers.values() if layer.shape and layer.ran[0].end < layers.attended]
    norms = [layer for layer in ended if layer.layout and layer.layout.prefix and "norm" in layer.kind.lower()]
    return max(norms, key=lambda layer: layer.ran[0].end).module if norms else None


def behind(module: str, layers: Layers) -> str:
    """What down-samples behind a stage, with the sizes before and after it."""
    if module == before_attention(layers):
        return "the last normalisation before the last attention of a network that predicts from its class token"
    own = layers[module].ran[0]
    for layer, call in _once(layers):
        if call.begin > own.end and call.takes == own.gives and _places(call.gives) < _places(own.gives):
            what = (
                "before the global pooling by"
                if _places(call.gives) == 1 < _places(own.gives) // STRIDE**2
                else "before"
            )
            return f"{what} {layer.module} ({_shown(call.takes)} to {_shown(call.gives)})"
    for layer, call in _once(layers):
        if call.begin > own.end and call.takes and _places(call.takes) < _places(own.gives):
            return f"before a function that hands {_shown(call.takes)} to {layer.module}"
    return "the last map"


def _once(layers: Layers) -> Iterator[tuple[LayerInfo, Call]]:
    """Every module that gives a map, in the order in which they begin."""
    found = [(layer, layer.ran[0]) for layer in layers.values() if layer.shape]
    return iter(sorted(found, key=lambda pair: pair[1].begin))


def _trunk(net: nn.Module, layers: Layers, path: str = "") -> Iterator[str]:
    """The children of a module, and of those in turn that are opened."""
    for name, child in net.get_submodule(path).named_children():
        inner = f"{path}.{name}" if path else name
        if inner in layers and layers[inner].shape and not _between(inner, child, layers):
            yield inner
        else:
            yield from _trunk(net, layers, inner)


def _between(path: str, module: nn.Module, layers: Layers) -> bool:
    """Whether a map inside has fewer places than the module takes and more than it gives."""
    call = layers[path].ran[0]
    inside = (f"{path}.{name}" for name, _ in module.named_modules() if name)
    sizes = {_places(each.gives) for name in inside if name in layers for each in layers[name].ran}
    return any(_places(call.gives) < places < _places(call.takes) for places in sizes)


def _is_global_pooling(path: str, layers: Layers, net: nn.Module) -> bool:
    """Whether one place is left of a map: by a pooling at its end, or of more places than one stride takes together."""
    call = layers[path].ran[0]
    if _places(call.gives) != 1:
        return False
    ends = {name: layer.ran[-1].end for name, layer in layers.items() if layer.ran and name.startswith(f"{path}.")}
    last = net.get_submodule(max(ends, key=ends.__getitem__, default=path))
    return isinstance(last, POOLS) or _places(call.takes) > STRIDE**2


def _places(size: Size | Sequence[int] | None) -> int:
    return size[0] * size[1] if size else 0


def _shown(size: Size | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "no map"
