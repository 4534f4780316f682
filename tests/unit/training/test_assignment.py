import pytest

torch = pytest.importorskip("torch")

from batchdet.model.nets.head import Predictions  # noqa: E402
from batchdet.training.assignment import Truth, assign, complete_iou, pairwise_iou  # noqa: E402


def scattered(seed: int, objects: int) -> tuple[Predictions, "torch.Tensor", Truth]:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(2, objects, 2, generator=rng) * 70
    truth = Truth(
        torch.cat([low, low + 10 + torch.rand(2, objects, 2, generator=rng) * 60], dim=-1),
        torch.randint(0, 4, (2, objects), generator=rng),
        torch.rand(2, objects, generator=rng) < 0.8,
    )
    centres = torch.cartesian_prod(torch.arange(8) * 16.0 + 8, torch.arange(8) * 16.0 + 8)
    reach = torch.rand(2, 64, 4, generator=rng) * 30
    boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
    return Predictions(torch.randn(2, 64, 4, generator=rng), boxes), centres, truth


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cells_per_object", [1, 4])
def test_each_object_gets_at_most_its_share_of_cells_inside_it(seed: int, cells_per_object: int) -> None:
    predictions, centres, truth = scattered(seed, 6)
    assignment = assign(predictions, centres, truth, cells_per_object)
    assert assignment.positive.any()
    for row in range(2):
        taken = assignment.object_index[row][assignment.positive[row]]
        assert torch.bincount(taken, minlength=6).max() <= cells_per_object
        assert truth.present[row][taken].all()
        where = centres[assignment.positive[row]]
        boxes = truth.boxes_xyxy[row][taken]
        assert ((where > boxes[:, :2]) & (where < boxes[:, 2:])).all()
    assert ((assignment.target_score > 0) <= assignment.positive).all()
    assert (assignment.target_score <= 1).all()


def test_one_to_one_takes_the_best_aligned_cell() -> None:
    centres = torch.tensor([[8.0, 8.0], [24.0, 8.0]])
    boxes = torch.tensor([[[0.0, 0.0, 30.0, 16.0], [0.0, 0.0, 32.0, 16.0]]])
    truth = Truth(torch.tensor([[[0.0, 0.0, 32.0, 16.0]]]), torch.tensor([[0]]), torch.tensor([[True]]))
    assignment = assign(Predictions(torch.zeros(1, 2, 1), boxes), centres, truth, 1)
    assert assignment.positive.tolist() == [[False, True]]
    assert assignment.target_score[0, 1] == pytest.approx(1.0)


def test_a_high_score_power_keeps_the_cell_that_already_speaks() -> None:
    centres = torch.tensor([[8.0, 8.0], [24.0, 8.0]])
    boxes = torch.tensor([[[0.0, 0.0, 30.0, 16.0], [0.0, 0.0, 32.0, 16.0]]])
    predictions = Predictions(torch.tensor([[[0.5], [0.0]]]), boxes)
    truth = Truth(torch.tensor([[[0.0, 0.0, 32.0, 16.0]]]), torch.tensor([[0]]), torch.tensor([[True]]))
    assert assign(predictions, centres, truth, 1).positive.tolist() == [[False, True]]
    assert assign(predictions, centres, truth, 1, score_power=2).positive.tolist() == [[True, False]]


def test_images_without_objects_assign_nothing() -> None:
    predictions, centres, _ = scattered(0, 6)
    truth = Truth(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool))
    assert not assign(predictions, centres, truth, 1).positive.any()


def test_overlap_of_known_boxes() -> None:
    first = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])
    second = torch.tensor([[[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]]])
    assert torch.allclose(pairwise_iou(first, second), torch.tensor([[[1 / 3, 1.0, 0.0]]]))


def test_complete_iou_is_one_for_equal_boxes_and_sees_distance() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    assert complete_iou(boxes, boxes).item() == pytest.approx(1.0)
    near, far = complete_iou(boxes, boxes + 5), complete_iou(boxes, boxes + 50)
    assert 0 > near.item() > far.item() > -1.5
