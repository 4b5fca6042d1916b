"""What the literature does with each known dataset, where the user does not say otherwise."""

import dataclasses

from gaternet_tf.data.augmentation import Augmentation

NO_AUGMENTATION = Augmentation()


@dataclasses.dataclass(frozen=True)
class Defaults:
    """How a dataset is read, normalised and augmented unless flags say otherwise.

    `statistics` are the per-channel (mean, std) on the 0-to-1 scale; None: they are measured.
    `image_size` is the side of the network's pictures, 0 for that of the files, and `resize` the
    length in pixels that the shorter side is scaled to before the central crop of evaluation, 0
    for scaling without a crop. `test_split` names the labelled split that is the test.
    `manual_files` are those that nobody may fetch for the user, with their sizes in bytes.
    """

    augmentation: Augmentation = NO_AUGMENTATION
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    image_size: int = 0
    resize: int = 0
    test_split: str | None = None
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
        # Where the archive of the test pictures was there too, its labels are all -1.
        test_split="validation",
        manual_files=(
            ("ILSVRC2012_img_train.tar", 147_897_477_120),
            ("ILSVRC2012_img_val.tar", 6_744_924_160),
        ),
    ),
}


def defaults_of(name: str) -> Defaults:
    """The entry of a dataset's name, or what holds for sets without one.

    A version that is named (`cifar10:3.0.2`) changes nothing; a configuration is another set.
    """
    return DEFAULTS.get(name.partition(":")[0], Defaults())
