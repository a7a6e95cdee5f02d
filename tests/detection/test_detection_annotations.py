"""Files in COCO's format: whatever they hold, they are read and evaluated, or refused with the place and the reason."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

for module in ("torchvision", "pycocotools", "sklearn"):
    pytest.importorskip(module)

import warnings

from PIL import Image

from conftest import examples
from ghm_triton.detection.data import coco
from ghm_triton.detection.training.evaluation import average_precision

CONTENT = {
    "images": [{"id": one, "file_name": f"{one}.png", "width": 32, "height": 24} for one in (7, 8)],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 8.5, 9], "area": 76.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 32, 24]},
        {"id": 3, "image_id": 8, "category_id": 3, "bbox": [1, 1, 4, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}


def places(value, path=()):
    """The path of each value within the JSON `value`."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = [path for path in places(CONTENT) if path]
ODD = st.sampled_from(
    [10**400, -(10**400), 2**63, 1e39, float("nan"), float("inf"), -1, 0, 1.5, "", "96", "\0", "\ud800"]
)
VALUES = st.one_of(
    ODD,
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=300),
    st.lists(st.integers(-3, 40), max_size=5),
    st.dictionaries(st.sampled_from(["id", "bbox", "name"]), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for entry in CONTENT["images"]:
        Image.new("RGB", (32, 24)).save(folder / entry["file_name"])
    return folder


def read(folder, text):
    """Reads the file, all its items, and evaluates a detection in each image."""
    path = folder / "annotations.json"
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = coco.CocoBoxes(path, folder)
    results = []
    for image, target in data:  # ends after the last image, which a loop over them used not to do
        assert image.shape == (3, 24, 32) and len(target["boxes"]) == len(target["labels"])
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        found = {"category_id": data.category_ids[0], "bbox": [2, 3, 8.5, 9], "score": 0.5}
        results.append({"image_id": target["image_id"], **found})
    assert average_precision(data.coco(), results)["AP"] <= 100
    return data


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "delete", "repeat"]), VALUES), min_size=1, max_size=3
    )
)
@examples(200)
def test_mutated_files_are_read_or_refused_with_the_place(folder, mutations):
    content = json.loads(json.dumps(CONTENT))
    for path, what, value in mutations:
        parent = content
        try:
            for key in path[:-1]:
                parent = parent[key]
            if what == "set":
                parent[path[-1]] = value
            elif what == "delete":
                del parent[path[-1]]
            else:
                parent.append(parent[path[-1]]) if isinstance(parent, list) else None
        except (KeyError, IndexError, TypeError):  # an earlier mutation took the place away
            pass
    try:
        read(folder, json.dumps(content))
    except (OSError, ValueError) as error:
        entry = r"(images|annotations|categories)\[\d+\]\S* must be "
        place = rf"annotations \S*annotations.json(: {entry}| must have )|images must be in "
        assert re.match(place, str(error)) and ", got " in str(error), error


@pytest.mark.slow
@given(st.one_of(st.text(max_size=30), st.integers(0, 600).map(lambda end: json.dumps(CONTENT)[:end])))
@examples(40)
def test_files_that_are_no_json_are_refused(folder, text):
    text = text.encode(errors="surrogatepass").decode(errors="replace")
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"annotations .*annotations.json must be JSON, got "):
            read(folder, text)


def test_a_file_that_is_nested_too_deeply_is_refused(folder):
    with pytest.raises(ValueError, match="must be JSON, got"):
        read(folder, "[" * 100_000)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("annotations", 2, "iscrowd"), None, r"annotations\[2\].iscrowd must be 0 or 1, got null"),
        (("annotations", 0, "area"), None, r"annotations\[0\].area must be a finite number from 0, got null"),
        (("annotations", 1, "image_id"), [7], r"annotations\[1\].image_id must be an integer of 64 bits, got \[7\]"),
        (("images", 1, "id"), "8", r"images\[1\].id must be an integer of 64 bits, got '8'"),
        (("images", 0, "file_name"), None, r"images\[0\].file_name must be the name of a file, got null"),
        (("images", 1, "height"), "96", r"images\[1\].height must be an integer from 1 to 1,000,000, got '96'"),
        (("categories", 0), 3, r"categories\[0\] must be an object, got 3"),
    ],
)
def test_wrong_fields_are_named(folder, place, value, message):
    """All of these used to pass the check and fail later, or be tracebacks."""
    content = json.loads(json.dumps(CONTENT))
    *path, last = place
    parent = content
    for key in path:
        parent = parent[key]
    parent[last] = value
    with pytest.raises(ValueError, match=message):
        read(folder, json.dumps(content))


def test_boxes_of_huge_numbers_are_left_out(folder):
    content = json.loads(json.dumps(CONTENT))
    content["annotations"][0]["bbox"][2] = 10**400
    assert [len(data["boxes"]) for _, data in read(folder, json.dumps(content))] == [1, 0]
