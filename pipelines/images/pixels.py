"""What the image tower reads: pictures through an image processor, kept in memory while there is room."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import torch
from torch import Tensor

from conf.errors import UserError, out_of_memory
from pipelines.images.data import Pictures

SHARE = 8
"""Of the free memory one part in so many, at most, is taken for the pixels of all tasks that are held at once."""
PART = 16
"""Pictures that one thread decodes at a time."""


class Pixels:
    """A split's pictures as pixels [3, S, S] in float32, processed when first asked for.

    ``places`` are those that will be asked for; they are kept where all of them fit into the memory's share for one of
    ``tasks`` tasks, and processed anew each time where they do not.
    """

    def __init__(self, pictures: Pictures, processor: Any, places: Sequence[int], tasks: int = 1):
        self.pictures, self.processor, self.places = pictures, processor, list(places)
        self.room = psutil.virtual_memory().available // SHARE // tasks
        self._kept: dict[int, Tensor] = {}

    def batch(self, places: Sequence[int]) -> Tensor:
        """The pixels of some places [B, 3, S, S]. Raises UserError for a picture that cannot be read."""
        wanted = [place for place in places if place not in self._kept]
        parts = [wanted[i : i + PART] for i in range(0, len(wanted), PART)]
        if len(parts) > 1:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes and resizes outside the lock
                found = list(pool.map(self._processed, parts))
        else:
            found = [self._processed(part) for part in parts]
        made = {place: pixels for part, values in zip(parts, found) for place, pixels in zip(part, values)}
        if made and next(iter(made.values())).nbytes * len(self.places) <= self.room:
            self._kept.update(made)
        return torch.stack([made[place] if place in made else self._kept[place] for place in places])

    def _processed(self, places: Sequence[int]) -> Tensor:
        pictures = [self.pictures.picture(place) for place in places]
        try:
            return self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            if out_of_memory(error):
                raise
            what = f"the base's image processor does not take the pictures: {str(error).partition(chr(10))[0][:200]}"
            raise UserError(what, where=self.pictures.name, do="mend its preprocessor_config.json") from error
