"""The size of an image after resizing (section 5) and after padding to the network's strides."""

from dataclasses import dataclass

SIZE_MULTIPLE = 32  # the coarsest stride; padded sides are multiples of it


@dataclass(frozen=True)
class ImageSize:
    """Shortest side `short` pixels, longest side at most `short * ratio` (512 × 1.667 = 853)."""

    short: int
    ratio: float

    @property
    def longest(self) -> int:
        """In whole pixels, safe against float rounding: 512 × 1.25 is 640."""
        return int(self.short * self.ratio + 1e-6)

    def of(self, size_hw: tuple[float, float], short: int | None = None) -> tuple[int, int]:
        """Returns (height, width) after resizing. `short` (<= self.short): the jittered shortest
        side."""
        height, width = size_hw
        scale = (short or self.short) / min(height, width)
        scale = min(scale, self.longest / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to_multiple(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size_hw)
    return height, width
