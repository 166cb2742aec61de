"""Networks of a user's that raise, or give something odd."""

from __future__ import annotations

from benchmarks.attack import world as whole
from benchmarks.attack.stage import Stage, counts
from benchmarks.attack.world import World, score

PHASES = {
    "import": "{fault}",
    "call": """
def net():
    {fault}
""",
    "first image": """
class Own(Net):
    def forward(self, x):
        {fault}
""",
    "a later image": """
class Own(Net):
    seen = 0

    def forward(self, x):
        Own.seen += 1
        if Own.seen > 6:
            {fault}
        return super().forward(x)
""",
    "backward": """
class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        {fault}


class Own(Net):
    def forward(self, x):
        return Bad.apply(super().forward(x))
""",
    "another batch size": """
class Own(Net):
    def forward(self, x):
        if len(x) > 1:
            {fault}
        return super().forward(x)
""",
    "a name of its own": """
class Own(Net):
    def __getattr__(self, name):
        if name in ("pretrained_cfg", "default_cfg", "num_classes", "logits"):
            {fault}
        return super().__getattr__(name)
""",
    **{
        f"`{method}`": f"""
class Own(Net):
    def {method}(self, *arguments, **named):
        {{fault}}
"""
        for method in (
            "state_dict", "load_state_dict", "named_modules", "named_parameters", "named_children", "train", "_apply",
            "requires_grad_", "__call__", "__deepcopy__", "__repr__", "get_extra_state",
        )
    },
}  # fmt: skip
"""Where a fault strikes, in code that stands behind `world.NET`."""

FAULTS = (
    *(f"raise {name}('seventeen')" for name in ("ValueError", "KeyError", "AttributeError", "ImportError", "TypeError",
                                                "SystemExit", "RecursionError")),
    "raise SystemExit(0)", "raise MemoryError()", "raise OSError(28, 'seventeen', '/x')", "raise StopIteration",
    "raise AssertionError", "raise RuntimeError('seven\\nteen')", "raise Weird()", "raise Unprintable()",
    "return None + 1", "import not_there_at_all", "raise NotImplementedError", "raise GeneratorExit",
    "raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'seventeen')",
)  # fmt: skip
HOSTILE = """

class Weird(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


"""
MAKE = """

def net():
    return Own()
"""


def user_file(stage: Stage, world: World) -> None:
    """A network that raises: one sentence that names it; where it never comes to that, the right numbers."""
    phase, fault = stage.rng.choice(list(PHASES)), stage.rng.choice(FAULTS)
    if phase == "import":
        fault = fault.removeprefix("return ")
    own = PHASES[phase].replace("{fault}", fault)
    if phase not in ("import", "call"):
        own += MAKE
    (stage.folder / "own.py").write_text(f"{whole.NET}{HOSTILE}{own}")
    stage.link("photos", "w.safetensors")
    stage.tried.append(f"a network that does `{fault}` in {phase}")
    command = score(model="own.py:net")
    ran = stage.run(*command if stage.rng.random() < 0.8 else ["layers", "own.py:net"])
    named = ("own.py", "net", "w.safetensors", "Memory ran out")
    if ran.code == 1 and not any(word in ran.err for word in named):
        stage.fell("the sentence does not name the network")
    if ran.code == 0 and ran.arguments[0] == "score":
        stage.same(stage.rows(), world.score)


RETURNED = (
    *("None", "'logits'", "17", "[]", "()", "{}", "y[0]", "y[:, :1]", "y[:, :0]", "y[None]", "y.mean()", "y.int()"),
    *("y.half()", "y * float('nan')", "y / 0", "y.detach()", "y.to_sparse()", "y.to('meta')", "torch.zeros(len(x), 3)"),
    *("y[:-1]", "torch.cat([y, y])", "y.T", "y.numpy()", "torch.complex(y, y)", "x", "y.requires_grad_(False)"),
    *("(y,)", "{'logits': y}", "[y]", "y.double()"),
)
HARMLESS = ("(y,)", "{'logits': y}", "[y]", "y.double()")


def returned(stage: Stage, world: World) -> None:
    """A network that gives something odd."""
    what = stage.rng.choice(RETURNED)
    own = f"class Own(Net):\n    def forward(self, x):\n        y = super().forward(x)\n        return {what}\n"
    (stage.folder / "own.py").write_text(f"{whole.NET}\n\n{own}{MAKE}")
    stage.link("photos", "w.safetensors")
    stage.tried.append(f"a network that returns {what}")
    ran = stage.run(*score(model="own.py:net"))
    if ran.code == 0 and what in HARMLESS:
        stage.same(counts(stage.rows()), counts(world.score))
