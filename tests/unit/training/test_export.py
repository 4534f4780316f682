from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from batchdet.model.nets.detector_net import Composition, DetectorNet, compose  # noqa: E402
from batchdet.training.export import export_onnx, fuse  # noqa: E402


@pytest.fixture(scope="module")
def net() -> DetectorNet:
    """A net whose scores differ enough for one order, and whose batch norm is not the identity."""
    return settled(Composition(12))


def settled(composition: Composition) -> DetectorNet:
    torch.manual_seed(0)
    net = compose(composition)
    for tower in [*net.head.one_to_one.score_towers, *net.head.one_to_one.box_towers]:
        torch.nn.init.normal_(tower[-1].weight, std=0.5)
    net.train()
    for _ in range(40):
        net(torch.rand(2, 3, 96, 64))
    return net.eval()


@pytest.fixture(scope="module")
def exported(net: DetectorNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    export_onnx(net, path, {"task": "detect"})
    return path


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 96, 160), (1, 320, 224), (2, 32, 32)])
def test_onnxruntime_agrees_with_torch(net: DetectorNet, exported: Path, shape: tuple[int, int, int]) -> None:
    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    images = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = net(images).numpy()
    (found,) = session.run(None, {"images": images.numpy()})
    assert found.shape == wanted.shape == (shape[0], 100, 6)
    assert np.abs(found[..., 4] - wanted[..., 4]).max() < 1e-4
    same = np.isclose(found, wanted, atol=2e-2).all(axis=2)
    assert same.mean() > 0.97  # near ties may change places


def test_the_file_is_whole_and_describes_itself(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert model.ir_version <= 10
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert {item.key: item.value for item in model.metadata_props} == {"task": "detect"}
    (images,) = model.graph.input
    assert images.name == "images"
    assert [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim] == ["N", 3, "H", "W"]
    assert [output.name for output in model.graph.output] == ["output0"]


def test_fusing_leaves_the_net_alone_and_keeps_its_answers(net: DetectorNet) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fused = fuse(net)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(fused(images)[..., 4], net(images)[..., 4], atol=1e-4)


@pytest.mark.parametrize(("backbone", "neck"), [("vit", "fpn"), ("vit_tiny", "pan")])
def test_every_kind_of_part_is_exported(backbone: str, neck: str, tmp_path: Path) -> None:
    net = settled(Composition(3, backbone, neck))
    export_onnx(net, tmp_path / "net.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for shape in [(1, 3, 32, 32), (2, 3, 96, 160)]:  # 63 candidates, fewer than the 100 that leave, and more
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = net(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        assert found.shape == wanted.shape == (shape[0], 100, 6)
        assert np.abs(found[..., 4] - wanted[..., 4]).max() < 1e-4
        assert np.isclose(found, wanted, atol=2e-2).all(axis=2)[:, :60].mean() > 0.97
