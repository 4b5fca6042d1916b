"""The newest version of a model, replaced when a newer one is published."""

import pathlib

from serving.server.loading import LoadedVersion


class NewestVersion:
    """The newest version below a model's directory that loads.

    A request keeps the `loaded` version that it began with; a swap replaces that attribute only.

    Args:
      name: the model's name.
      base_path: directory with a subdirectory for each version, named by a positive integer.

    Attributes:
      loaded: the version that is served.
      failed: why a version could not be loaded, by its number.

    Raises:
      ValueError: if there is no version, or the newest cannot be loaded.
    """

    loaded: LoadedVersion

    def __init__(self, name: str, base_path: pathlib.Path):
        self.name = name
        self.base_path = base_path
        self.failed: dict[int, str] = {}
        self._number = 0
        self.poll()

    def poll(self) -> None:
        """Looks for the newest version, and loads it if it is another than the one served.

        A version that failed is not tried again, as on TensorFlow Serving.

        Raises:
          ValueError: if there is no version, or the newest cannot be loaded.
        """
        versions = {
            int(path.name): path
            for path in self.base_path.glob("*")
            if path.name.isascii() and path.name.isdecimal() and path.is_dir()
        }
        newest = max(versions, default=0)
        if newest < 1:
            raise ValueError(
                "a model's base path must be a directory with a version such as "
                f"'{self.base_path / '1'}' in it, and '{self.base_path}' has none"
            )
        if newest == self._number or newest in self.failed:
            return
        try:
            self.loaded = LoadedVersion(versions[newest], newest)
        except ValueError as error:
            self.failed[newest] = str(error)
            raise
        self._number = newest
