import numpy as np
import pytest

from batchdet.sample.scene import CLASSES, EMPTY_FRACTION, Scene, render_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(11, index) for index in range(150)]


def test_there_are_twelve_classes_with_names_of_their_own() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 12


def test_a_scene_depends_on_seed_and_index_alone(scenes: list[Scene]) -> None:
    for index in (40, 3, 17):
        again = render_scene(11, index)
        assert np.array_equal(again.rgb, scenes[index].rgb)
        assert np.array_equal(again.boxes_xyxy, scenes[index].boxes_xyxy)
        assert np.array_equal(again.class_ids, scenes[index].class_ids)
    other = render_scene(12, 3)
    assert other.rgb.shape != scenes[3].rgb.shape or not np.array_equal(other.rgb, scenes[3].rgb)


def test_arrays_have_the_documented_types(scenes: list[Scene]) -> None:
    for scene in scenes:
        height_px, width_px, channels = scene.rgb.shape
        assert (scene.rgb.dtype, scene.boxes_xyxy.dtype, scene.class_ids.dtype) == (np.uint8, np.float32, np.int64)
        assert channels == 3
        assert 320 <= min(height_px, width_px) <= max(height_px, width_px) <= 640
        assert scene.boxes_xyxy.shape == (len(scene.class_ids), 4)


def test_boxes_lie_inside_the_image_and_are_of_a_useful_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        height_px, width_px = scene.rgb.shape[:2]
        sides_px = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
        assert (scene.boxes_xyxy >= 0).all()
        assert (scene.boxes_xyxy <= [width_px, height_px] * 2).all()
        assert (sides_px.max(axis=1, initial=0) >= 12).all()
        assert (sides_px >= 6).all()
        assert (sides_px <= 300).all()


def test_boxes_are_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same scene without objects differs from the scene only inside the boxes, up to their very edges.
    monkeypatch.setattr("batchdet.sample.scene.develop", lambda _, image: image)
    checked = 0
    for index in range(30):
        scene = render_scene(5, index)
        with monkeypatch.context() as patch:
            patch.setattr("batchdet.sample.scene._place", lambda *_: 0)
            empty = render_scene(5, index)
        changed = (scene.rgb != empty.rgb).any(axis=2)
        inside = np.zeros_like(changed)
        for x_min, y_min, x_max, y_max in scene.boxes_xyxy.astype(int):
            inside[max(0, y_min - 2) : y_max + 2, max(0, x_min - 2) : x_max + 2] = True
        assert not (changed & ~inside).any()
        if len(scene.class_ids) == 1:
            rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
            drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert np.abs(scene.boxes_xyxy[0] - drawn).max() <= 2
            checked += 1
    assert checked


def test_every_class_and_the_empty_image_occur(scenes: list[Scene]) -> None:
    seen = np.concatenate([scene.class_ids for scene in scenes])
    assert set(seen) == set(range(len(CLASSES)))
    empty = sum(len(scene.class_ids) == 0 for scene in scenes) / len(scenes)
    assert EMPTY_FRACTION / 5 < empty < EMPTY_FRACTION * 3


def test_images_are_landscape_portrait_and_square(scenes: list[Scene]) -> None:
    forms = {int(np.sign(scene.rgb.shape[1] - scene.rgb.shape[0])) for scene in scenes}
    assert forms == {-1, 0, 1}
