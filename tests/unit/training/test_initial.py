import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("safetensors")

import batchdet  # noqa: E402
from batchdet.errors import SpecError  # noqa: E402
from batchdet.model.nets.checkpoint import save_net  # noqa: E402
from batchdet.model.nets.detector_net import Composition, compose  # noqa: E402
from batchdet.sample.scene import CLASSES  # noqa: E402
from batchdet.training.initial import BUILTIN, calibrate, open_initial, take_over  # noqa: E402

SAMPLE = Path(batchdet.__file__).parent / "model" / "embedded" / "sample.onnx"


def scenes(count: int) -> "torch.Tensor":
    from batchdet.training.stream import SceneStream

    images, _ = SceneStream(seed=3, batch_rows=count).batch(0)
    return images.float() / 255


def test_the_embedded_weights_compute_what_the_embedded_file_computes() -> None:
    """Also after batch norm has got its statistics back, and then nearly so with those of a batch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = compose(Composition(len(CLASSES))).eval()
    initial = open_initial(BUILTIN)
    said = take_over(net, Composition(len(CLASSES)), CLASSES, initial)
    assert said == "backbone, neck, head of builtin:sample, 12 of 12 classes known"
    images = scenes(8)
    session = onnxruntime.InferenceSession(str(SAMPLE), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"images": images.contiguous().numpy()})
    confident = wanted[..., 4] > 0.3
    assert confident.sum() > 15
    with torch.no_grad():
        before = net(images).numpy()
        calibrate(net, [images])
        after = net(images).numpy()
        net.backbone.train()
        in_training = net(images).numpy()
    for found in (before, after):
        assert np.abs(found[..., 4] - wanted[..., 4]).max() < 1e-3
        assert np.isclose(found[confident], wanted[confident], atol=0.05).all()
    assert np.abs(in_training[..., 4] - wanted[..., 4]).max() < 0.2  # without calibrate: 0.9
    norm = net.backbone.stem[1]
    assert norm.running_var.std() > 0
    twin = net.head.one_to_many.box_towers[0][0][0].weight
    assert torch.equal(twin, net.head.one_to_one.box_towers[0][0][0].weight)


def test_classes_of_the_same_label_keep_what_scores_them(tmp_path: Path) -> None:
    before, after = Composition(3), Composition(2)
    torch.manual_seed(0)
    old, new = compose(before), compose(after)
    fresh = new.head.one_to_one.score_towers[0][1].weight.detach().clone()
    save_net(old, tmp_path / "old.safetensors", before, {"names": "{0: 'cat', 1: 'dog', 2: 'cow'}"}, {})
    said = take_over(new, after, ("hen", "dog"), open_initial(str(tmp_path / "old.safetensors")))
    assert said.endswith("1 of 2 classes known")
    was, now = (net.head.one_to_one.score_towers[0][1] for net in (old, new))
    assert torch.equal(now.weight[1], was.weight[1])
    assert torch.equal(now.weight[0], fresh[0])
    assert torch.equal(new.neck.laterals[0][0].weight, old.neck.laterals[0][0].weight)


def test_parts_that_differ_begin_anew_and_another_backbone_is_refused() -> None:
    initial = open_initial(BUILTIN)
    fpn = Composition(12, neck="fpn")
    assert take_over(compose(fpn), fpn, CLASSES, initial) == "backbone of builtin:sample"
    vit = Composition(12, "vit")
    with pytest.raises(SpecError, match="backbone is vit of width 1, that of builtin:sample is csp"):
        take_over(compose(vit), vit, CLASSES, initial)
    with pytest.raises(SpecError, match="no such file"):
        open_initial("/nowhere/net.safetensors")


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_of_ultralytics_names_its_own_package(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "yolo26n.pt"
    if there:
        with zipfile.ZipFile(path, "w") as archive:  # as torch.save writes it
            archive.writestr("yolo26n/data.pkl", b"\x80\x02cultralytics.nn.tasks\nDetectionModel\nq\x00.")
    with pytest.raises(SpecError) as caught:
        open_initial(str(path))
    assert (caught.value.code, caught.value.key, caught.value.exit_status) == ("train.init_ultralytics", "--init", 2)
    assert "\n" not in caught.value.message
    assert "yolo detect train model=yolo26n.pt" in caught.value.message


def test_another_pickle_is_refused_and_never_loaded(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(SpecError) as caught:
        open_initial(str(tmp_path / "net.pt"))
    assert caught.value.code == "train.init_pickle"
