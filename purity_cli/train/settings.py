"""What decides a training, and the published recipe (SPEC, CIFAR-10 training) as its defaults."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from purity_cli.errors import PurityError
from purity_cli.plan import Frozen, complaint


class Augmentation(Frozen):
    """Pad with black by `pad` pixels, mirror every second image at random if `flip`, crop the old size at random."""

    pad: Annotated[int, Field(ge=0)] = 4
    flip: bool = True


AUGMENTATION = {"digits": Augmentation(flip=False)}
"""By the data set's name; all others get the published one. A mirrored digit is another sign."""

BATCH_SIZE = {"resnet18_cifar": 64}
"""By the network's name; all others get 128."""

CHECKPOINTS = (10, 20, 50, 100)


class Training(Frozen):
    """One training. `epochs`, `checkpoints` and `device` decide how far it goes, what it leaves and where it runs; all
    else decides the path of its weights.

    The learning rate is `lr` divided by `lr_divisor` after every `lr_every` epochs. `resize` makes images of other
    sizes fit: their short side, and then a central crop. `limit` is the number of images of each split, evenly
    spaced over its list; None for all.
    """

    model: str = "tiny_vgg_10"
    dataset: str = "digits"
    data_dir: str | None = None
    resize: Annotated[int, Field(ge=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 100
    checkpoints: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    lr_divisor: float = 3
    lr_every: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    device: str = "auto"

    @classmethod
    def of(cls, **settings: object) -> Self:
        """A Training, with pydantic's complaint turned into one sentence."""
        try:
            training = cls.model_validate(settings)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise PurityError(f"{where}: {complaint(error, cls.model_fields)}") from None
        late = [epoch for epoch in training.checkpoints or () if epoch > training.epochs]
        if late:
            raise PurityError(
                f"There is no epoch {late[0]} to keep a checkpoint of: {training.epochs} epochs were asked for; "
                f"give --epochs {max(late)} or earlier --checkpoints."
            )
        return training

    def kept(self) -> list[int]:
        """The epochs that leave a checkpoint: those asked for, else the published ones and the last."""
        published = [epoch for epoch in CHECKPOINTS if epoch < self.epochs]
        return sorted(set(self.checkpoints or [*published, self.epochs]))

    def augmentation(self) -> Augmentation:
        return AUGMENTATION.get(self.dataset, Augmentation())

    def rate(self, epoch: int) -> float:
        """The learning rate in `epoch`, from 1."""
        return self.lr / self.lr_divisor ** ((epoch - 1) // self.lr_every)
