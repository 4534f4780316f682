import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
files = pytest.importorskip("safetensors.torch")

from batchdet.errors import ModelError  # noqa: E402
from batchdet.model.nets.checkpoint import load_net, save_net  # noqa: E402
from batchdet.model.nets.detector_net import Composition, compose  # noqa: E402

COMPOSITION = Composition(3, "vit", "fpn", width=0.5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_net(compose(COMPOSITION), path, COMPOSITION, {"names": "{0: 'a'}", "stride": "32"}, {"steps": 7})
    return path


def test_a_net_comes_back_with_all_that_is_known_of_it(saved: Path) -> None:
    torch.manual_seed(0)
    net = compose(COMPOSITION).eval()
    loaded = load_net(saved)
    assert (loaded.composition, loaded.training) == (COMPOSITION, {"steps": 7})
    assert loaded.properties == {"names": "{0: 'a'}", "stride": "32"}
    assert not loaded.net.training
    assert all(torch.equal(value, loaded.net.state_dict()[name]) for name, value in net.state_dict().items())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(images), loaded.net(images))


def test_what_is_no_checkpoint_is_refused_in_a_sentence(saved: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    files.save_file({"x": torch.zeros(1)}, plain)
    with pytest.raises(ModelError, match="no key 'batchdet'"):
        load_net(plain)
    (tmp_path / "cut.safetensors").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_net(tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        load_net(tmp_path / "gone.safetensors")
    weights = files.load_file(saved)
    header = {"format": 1, "composition": {"classes": 4}, "properties": {}, "training": {}}
    files.save_file(weights, plain, metadata={"batchdet": json.dumps(header)})
    with pytest.raises(ModelError, match="weights are not those of its composition"):
        load_net(plain)
    files.save_file(weights, plain, metadata={"batchdet": json.dumps({**header, "format": 2})})
    with pytest.raises(ModelError, match="format 2; this version reads 1"):
        load_net(plain)
    files.save_file(weights, plain, metadata={"batchdet": json.dumps({**header, "composition": {"layers": 3}})})
    with pytest.raises(ModelError, match="not a checkpoint that this version reads"):
        load_net(plain)
