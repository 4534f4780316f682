"""Published ResNets and ViTs: batchdet's backbones compute the same with their weights, whatever the names."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from batchdet.errors import ModelError, SpecError  # noqa: E402
from batchdet.model.nets.backbones import PUBLISHED  # noqa: E402
from batchdet.model.nets.detector_net import Composition, compose  # noqa: E402
from batchdet.sample.dataset import write_sample  # noqa: E402
from batchdet.training import finetune  # noqa: E402
from batchdet.training.crew import Crew  # noqa: E402
from batchdet.training.initial import open_initial, take_over  # noqa: E402
from batchdet.training.plan import TrainingPlan  # noqa: E402
from batchdet.training.pretrained import read_pretrained  # noqa: E402
from tests.timm_names import timm_name  # noqa: E402

RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def shaken(model: Any) -> Any:
    """Give batch norms statistics that matter."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def loaded(uri: Path) -> Any:
    found = read_pretrained(str(uri))
    backbone = PUBLISHED[found.backbone]().eval()
    report = backbone.load_state_dict(found.weights, strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith(("finer", "same", "coarser")) for key in report.missing_keys)
    return found, backbone


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_computes_what_transformers_computes(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, depths = RESNETS[name]
    sizes = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    config = transformers.ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=sizes)
    model = shaken(transformers.ResNetForImageClassification(config))
    model.save_pretrained(tmp_path)
    found, backbone = loaded(tmp_path)
    assert found.backbone == name
    assert "not classifier.1.bias, classifier.1.weight" in found.said
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        wanted = model(backbone.normalise(images), output_hidden_states=True).hidden_states[2:]
        for ours, theirs in zip(backbone(images), wanted, strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("size", [(224, 224), (320, 224)])
def test_a_vit_computes_what_transformers_computes_on_any_canvas(tmp_path: Path, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    ).eval()
    model.save_pretrained(tmp_path)
    found, backbone = loaded(tmp_path)
    assert found.backbone == "vit_tiny"
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        normalised = backbone.trunk.normalise(images)
        tokens = model(normalised, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        ours = backbone.trunk(images).flatten(2).transpose(1, 2)
    assert (ours - tokens).abs().max() < 1e-4 * tokens.abs().max()


def timm_weights(backbone: str) -> dict[str, Any]:
    torch.manual_seed(0)
    net = PUBLISHED[backbone]()
    trunk = ("trunk.",) if hasattr(net, "trunk") else ("stem.", "stage")
    state = net.state_dict()
    weights = {timm_name(k): torch.randn(v.shape) if v.is_floating_point() else v for k, v in state.items()
               if k.startswith(trunk) and "normalise" not in k}  # fmt: skip
    head = "head" if backbone.startswith("vit") else "fc"
    return weights | {f"{head}.weight": torch.zeros(7, 3), f"{head}.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("resnet18", ["conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.1.conv2.weight"]),
        ("resnet50", ["layer1.0.downsample.0.weight", "layer3.5.bn3.weight", "layer1.2.conv3.weight"]),
        ("vit_tiny", ["cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.11.attn.qkv.weight", "norm.bias"]),
    ],
)
def test_names_of_timm_and_torchvision_are_known(tmp_path: Path, name: str, some: list[str]) -> None:
    weights = timm_weights(name)
    assert set(some) <= set(weights)
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(weights, path)
    found, backbone = loaded(path)
    assert found.backbone == name
    assert f"{len(weights) - 2} of {len(weights)} tensors" in found.said
    for key, value in backbone.state_dict().items():
        if timm_name(key) in weights:
            assert torch.equal(value, weights[timm_name(key)]), key
    safetensors.save_file({f"model.{k}": v for k, v in weights.items() if "num_batches" not in k}, path)
    assert read_pretrained(str(path)).backbone == name


def test_positions_of_larger_images_are_resampled(tmp_path: Path) -> None:
    weights = timm_weights("vit_tiny") | {"pos_embed": torch.full((1, 1 + 24 * 24, 192), 0.5)}
    safetensors.save_file(weights, tmp_path / "vit.safetensors")
    _, backbone = loaded(tmp_path / "vit.safetensors")
    assert torch.allclose(backbone.trunk.positions, torch.tensor(0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w | {"layer1.0.se.fc1.weight": torch.zeros(4, 4, 1, 1)}, "layer1.0.se.fc1.weight"),
        (lambda w: {k: v for k, v in w.items() if k != "layer3.0.conv1.weight"}, "nearest is resnet18, from which 1 "),
        (lambda w: w | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "stem.0.weight"),
        (lambda w: {"a": torch.zeros(2)}, "1 tensors, such as a (2,)"),
    ],
)
def test_what_fits_no_backbone_is_refused_with_what_was_found(tmp_path: Path, change: Any, named: str) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(change(timm_weights("resnet18")), path)
    with pytest.raises(SpecError) as caught:
        open_initial(str(path))
    assert (caught.value.code, caught.value.key) == ("train.init_backbone", "--init")
    assert named in caught.value.message


def test_normalisation_follows_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.save_file(timm_weights("resnet18"), path)
    usual, backbone = loaded(path)
    assert "usual ones" in usual.said
    assert backbone.normalise.mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    cfg = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}}
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    found, backbone = loaded(tmp_path)
    assert "usual ones" not in found.said
    assert backbone.normalise.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.4, 0.4, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    initial = open_initial(str(tmp_path))
    assert initial.properties["license"] == "apache-2.0"
    composition = Composition(3, "resnet18", width=2.0)  # the width is of neck and head
    net = compose(composition)
    said = take_over(net, composition, ("a", "b", "c"), initial)
    assert said.startswith(f"backbone of {tmp_path} (resnet18, 120 of 122 tensors")
    assert net.backbone.normalise.std.flatten().tolist() == pytest.approx([0.4, 0.4, 0.4])
    for wrong in ({"downsample_in_bottleneck": True}, {"hidden_act": "silu"}, {"model_type": "regnet"}):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(SpecError) as caught:
            open_initial(str(tmp_path))
        assert next(iter(wrong)) in caught.value.message
    path.unlink()
    with pytest.raises(ModelError) as missing:
        open_initial(str(tmp_path))
    assert missing.value.code == "model.no_weights"


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny"])
def test_a_frozen_backbone_keeps_published_weights_and_the_rest_learns(tmp_path: Path, backbone: str) -> None:
    data = write_sample(str(tmp_path / "scenes"), 6, "folder", seed=3, kinds="new").uri
    path = tmp_path / "weights.safetensors"
    weights = {k: 0.05 * v if v.is_floating_point() else v for k, v in timm_weights(backbone).items()}
    safetensors.save_file(weights, path)
    settings: Any = {"init": str(path), "freeze": "backbone", "batch_rows": 2, "canvas_px": 64, "epochs": 0.8}
    prepared = finetune.prepare(TrainingPlan(data, **settings))
    begun = finetune.begin(prepared, lambda line: None)
    trainer = finetune.train(prepared, tmp_path, False, Crew(), lambda line: None)
    after, before = trainer.net.state_dict(), begun.net.state_dict()
    kept = [key for key in after if timm_name(key.removeprefix("backbone.")) in weights and key.startswith("backbone.")]
    assert len(kept) == len(weights) - 2
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert all(torch.equal(after[key], weights[timm_name(key.removeprefix("backbone."))]) for key in kept)
    assert not any(torch.equal(after[key], before[key]) for key in after if key.startswith("neck") and "num" not in key)
    fresh = [key for key in after if key.startswith(("backbone.finer", "backbone.same"))]
    assert not any(torch.equal(after[key], before[key]) for key in fresh if "num" not in key)
    assert bool(fresh) == (backbone == "vit_tiny")
