"""How each known dataset is preprocessed and augmented in the literature."""

import dataclasses

from gaternet_tf.data.augmentation import Augmentation

NO_AUGMENTATION = Augmentation()
TEST_SHARE = 0.2
"""Share of the images that become the test where a dataset comes without one."""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """How a dataset is preprocessed and augmented unless flags say otherwise.

    Attributes:
      augmentation: of the training pictures.
      statistics: per-channel (mean, std) on the 0-to-1 scale; None to measure them.
      image_size: side of the network's pictures in pixels; 0 for the size of the stored ones.
      resize: length in pixels that the shorter side is scaled to before evaluation's central crop;
        0 for scaling without a crop.
      manual_files: (name, size in bytes) of the files that users must fetch themselves.
    """

    augmentation: Augmentation = NO_AUGMENTATION
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    image_size: int = 0
    resize: int = 0
    manual_files: tuple[tuple[str, int], ...] = ()


CIFAR_AUGMENTATION = Augmentation(padding=4, flip=True)

DEFAULTS = {
    "cifar10": Defaults(CIFAR_AUGMENTATION, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": Defaults(CIFAR_AUGMENTATION),
    "digits": Defaults(Augmentation(padding=1)),
    "fashion_mnist": Defaults(Augmentation(padding=2, flip=True)),
    "mnist": Defaults(Augmentation(padding=2)),
    "svhn_cropped": Defaults(Augmentation(padding=4)),
    "imagenet2012": Defaults(
        Augmentation(resized_crop=True, flip=True),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        image_size=224,
        resize=256,
        manual_files=(
            ("ILSVRC2012_img_train.tar", 147_897_477_120),
            ("ILSVRC2012_img_val.tar", 6_744_924_160),
        ),
    ),
}


def defaults_of(name: str) -> Defaults:
    """Returns the defaults of a dataset by its name, which may end in a version (`cifar10:3.0.2`).

    A configuration (`NAME/CONFIG`) is another dataset.
    """
    return DEFAULTS.get(name.partition(":")[0], Defaults())
