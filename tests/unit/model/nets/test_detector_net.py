import pytest

torch = pytest.importorskip("torch")

from batchdet.model.nets.backbone import CspBackbone  # noqa: E402
from batchdet.model.nets.detector_net import DetectorNet  # noqa: E402
from batchdet.model.nets.head import DualHead, DualPredictions, Predictions, select_best  # noqa: E402
from batchdet.model.nets.neck import FeaturePyramid  # noqa: E402

CANVASES = [(1, 32, 32), (2, 64, 96), (1, 320, 224), (3, 128, 128)]


@pytest.mark.parametrize(("count", "height", "width"), CANVASES)
def test_features_keep_the_contract_of_channels_and_strides(count: int, height: int, width: int) -> None:
    backbone = CspBackbone().eval()
    features = backbone(torch.rand(count, 3, height, width))
    for feature, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (count, channels, height // stride, width // stride)
    neck = FeaturePyramid(backbone.channels).eval()
    for level, feature, channels in zip(neck(features), features, neck.channels, strict=True):
        assert level.shape == (count, channels, *feature.shape[-2:])


@pytest.mark.parametrize(("count", "height", "width"), CANVASES)
def test_detections_are_sorted_and_shaped(count: int, height: int, width: int) -> None:
    with torch.no_grad():
        output = DetectorNet(12).eval()(torch.rand(count, 3, height, width))
    assert output.shape == (count, 100, 6)
    score, class_id = output[..., 4], output[..., 5]
    assert (score.diff(dim=1) <= 0).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert set(class_id.flatten().tolist()) <= set(range(12))
    assert (output[..., 2:4] >= output[..., :2]).all()


def test_training_gives_both_branches_over_all_cells() -> None:
    net = DetectorNet(12).train()
    predictions = net(torch.rand(2, 3, 64, 96))
    cells = 8 * 12 + 4 * 6 + 2 * 3
    assert isinstance(predictions, DualPredictions)
    assert predictions.centres_xy.shape == (cells, 2)
    assert predictions.centres_xy[0].tolist() == [4.0, 4.0]
    assert predictions.centres_xy[-1].tolist() == [80.0, 48.0]
    for branch in (predictions.one_to_many, predictions.one_to_one):
        assert branch.logits.shape == (2, cells, 12)
        assert branch.boxes_xyxy.shape == (2, cells, 4)


def test_select_best_takes_the_box_of_the_winning_cell() -> None:
    logits = torch.full((1, 3, 2), -9.0)
    logits[0, 2, 1], logits[0, 0, 0] = 3.0, 1.0
    boxes_xyxy = torch.arange(12.0).reshape(1, 3, 4)
    best = select_best(Predictions(logits, boxes_xyxy), 2)[0]
    assert best[0, :4].tolist() == [8.0, 9.0, 10.0, 11.0]
    assert best[:, 5].tolist() == [1.0, 0.0]
    assert torch.allclose(best[:, 4], torch.tensor([3.0, 1.0]).sigmoid())


def test_more_detections_than_the_smallest_canvas_gives_are_refused() -> None:
    with pytest.raises(ValueError, match="21 candidates"):
        DualHead((48, 48, 48), (8, 16, 32), class_count=1, detections=100)


def test_the_deployed_net_is_small() -> None:
    assert DetectorNet(12).deployed_parameters() < 480_000
