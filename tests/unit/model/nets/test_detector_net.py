import pytest

torch = pytest.importorskip("torch")

from batchdet.errors import SpecError  # noqa: E402
from batchdet.model.nets.backbones import BACKBONES, CspBackbone  # noqa: E402
from batchdet.model.nets.detector_net import Composition, DetectorNet, compose  # noqa: E402
from batchdet.model.nets.head import DualHead, DualPredictions, Predictions, select_best  # noqa: E402
from batchdet.model.nets.necks import NECKS, FeaturePyramid  # noqa: E402

CANVASES = [(1, 32, 32), (2, 64, 96), (1, 320, 224), (3, 128, 128)]


@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize("neck_name", NECKS)
@pytest.mark.parametrize("backbone_name", BACKBONES)
def test_features_keep_the_contract_of_channels_and_strides(backbone_name: str, neck_name: str, width: float) -> None:
    backbone = BACKBONES[backbone_name](width).eval()
    neck = NECKS[neck_name](backbone.channels).eval()
    assert backbone.strides == (8, 16, 32)
    for count, rows, columns in [(1, 32, 32), (2, 64, 96), (1, 320, 224)]:
        with torch.no_grad():
            features = backbone(torch.rand(count, 3, rows, columns))
            levels = neck(features)
        for feature, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
            assert feature.shape == (count, channels, rows // stride, columns // stride)
        for level, feature, channels in zip(levels, features, neck.channels, strict=True):
            assert level.shape == (count, channels, *feature.shape[-2:])


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_combination_learns_with_all_its_parameters(backbone: str, neck: str) -> None:
    torch.manual_seed(0)
    net = compose(Composition(3, backbone, neck, width=0.5)).train()
    predictions = net(torch.rand(2, 3, 64, 96))
    branches = (predictions.one_to_many, predictions.one_to_one)
    sum((branch.logits * branch.boxes_xyxy.sum(-1, keepdim=True)).sum() for branch in branches).backward()
    still = [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_parts_that_do_not_fit_are_refused_with_their_shapes() -> None:
    backbone = CspBackbone()
    head = DualHead((48, 48, 48), (8, 16, 32), 3)
    with pytest.raises(
        ValueError, match=r"the neck takes \(N, 64, H/8, W/8\), \(N, 64, .*the backbone gives .*\(N, 96,"
    ):
        DetectorNet(backbone, FeaturePyramid((64, 64, 64)), head)
    with pytest.raises(ValueError, match=r"the head takes \(N, 48, H/8, W/8\).*the neck gives \(N, 32, H/8, W/8\)"):
        DetectorNet(backbone, FeaturePyramid(backbone.channels, 32), head)
    backbone.strides = (8, 16, 64)
    with pytest.raises(ValueError, match="halve from level to level"):
        DetectorNet(backbone, FeaturePyramid(backbone.channels), head)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"backbone": "vgg"}, "known are csp, resnet, vit"), ({"neck": "bifpn"}, "known are fpn, pan"),
     ({"width": 0.1}, "from 0.25 to 8"), ({"classes": 0}, "1 or more")],
)  # fmt: skip
def test_compositions_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Composition(**{"classes": 3, **settings})


@pytest.mark.parametrize(("count", "height", "width"), CANVASES)
def test_detections_are_sorted_and_shaped(count: int, height: int, width: int) -> None:
    with torch.no_grad():
        output = compose(Composition(12)).eval()(torch.rand(count, 3, height, width))
    assert output.shape == (count, 100, 6)
    score, class_id = output[..., 4], output[..., 5]
    assert (score.diff(dim=1) <= 0).all()
    assert ((score >= 0) & (score <= 1)).all()
    assert set(class_id.flatten().tolist()) <= set(range(12))
    assert (output[..., 2:4] >= output[..., :2]).all()


def test_training_gives_both_branches_over_all_cells() -> None:
    net = compose(Composition(12)).train()
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


def test_where_candidates_are_few_blank_ones_fill_up() -> None:
    head = DualHead((48, 48, 48), (8, 16, 32), class_count=1, detections=100).eval()
    assert head.blanks == 100 - 21
    with torch.no_grad():
        few = head([torch.rand(1, 48, side, side) for side in (4, 2, 1)])
        many = head([torch.rand(1, 48, side, side) for side in (16, 8, 4)])
    assert few.shape == many.shape == (1, 100, 6)
    assert (few[0, :, 4] > 1e-6).sum() == 21
    assert (few[0, 21:, 4] < 1e-40).all()
    assert (many[..., 4] > 1e-6).all()
    assert not few[..., 5].any()


def test_the_deployed_net_is_small() -> None:
    assert compose(Composition(12)).deployed_parameters() < 480_000
