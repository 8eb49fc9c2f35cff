"""Label maps: ids as class numbers, void, colours."""

import numpy as np
import pytest
from PIL import Image

from potstill.errors import DataError
from potstill.tasks.label_maps import VOID, MapClasses, map_ids, voc_palette


def of(*rows: list[int], kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=kind))


def test_void_at_the_end_and_at_the_start() -> None:
    last = MapClasses(("a", "b"), (2,))
    assert last.ids == (0, 1) and last.numbers(of([0, 1, 2])).tolist() == [[0, 1, VOID]]
    first = MapClasses(("a", "b"), (0, 255))
    assert first.ids == (1, 2) and first.numbers(of([0, 1, 2, 255])).tolist() == [[VOID, 0, 1, VOID]]


def test_an_id_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"no class's. Got: 3, 7\."):
        MapClasses(("a", "b"), (2,)).numbers(of([0, 3, 7]))


def test_kinds_of_maps() -> None:
    palette = of([0, 1, 1]).convert("P")
    palette.putpalette([9, 9, 9, 1, 2, 3])
    for image in (
        of([0, 1, 1]),
        palette,
        of([0, 1, 1], kind=np.uint16),
        Image.fromarray(np.array([[False, True, True]])),
    ):
        assert map_ids(image).tolist() == [[0, 1, 1]]
    assert map_ids(of([300, 65535], kind=np.uint16)).tolist() == [[300, 65535]]
    with pytest.raises(DataError, match=r"beyond 0 … 65535. Got: 0 … 70000"):
        map_ids(of([0, 70000], kind=np.int32))
    with pytest.raises(DataError, match="holds no ids"):
        map_ids(of([0, 1], kind=np.float32))


def test_a_map_in_colours() -> None:
    colours = np.array([[[255, 0, 0], [0, 0, 7], [255, 0, 0]]], dtype=np.uint8)
    assert map_ids(Image.fromarray(colours), [(0, 0, 7), (255, 0, 0), (0, 0, 7)]).tolist() == [[1, 0, 1]]
    with pytest.raises(DataError, match=r"data.palette doesn't name. Got: #000007"):
        map_ids(Image.fromarray(colours), [(255, 0, 0)])
    with pytest.raises(DataError, match="Give the colour of each id"):
        map_ids(Image.fromarray(colours))


def test_colours_of_classes() -> None:
    assert voc_palette(5)[1:] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert voc_palette(21)[20] == (0, 64, 128)  # tvmonitor
    assert MapClasses(("a", "b"), (0,)).colours == voc_palette(3)[1:]
    assert MapClasses(("a", "b"), (0,), ((1, 1, 1), (2, 2, 2))).colours == ((2, 2, 2), (0, 0, 0))
