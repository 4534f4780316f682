"""Small detectors with random weights in Hugging Face's layout, made by the library itself."""

import json
from pathlib import Path
from typing import Any

STRETCHED = ("rt_detr", "rt_detr_v2", "d_fine")
BY_EDGES = ("detr", "yolos")
SIZE_PX = 128
EDGES_PX = (96, 160)
CLASSES = 5


def make_folder(folder: Path, model_type: str, denoising: int = 0) -> Any:
    """Save a model of a type; return it as the library has it. RT-DETRs get so many denoising queries for training."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(7)
    names = {i: f"thing {i}" for i in range(CLASSES)}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    model = _make(transformers, model_type, labels, denoising).eval()
    model.save_pretrained(folder)
    stretch = model_type in STRETCHED
    size = {"height": SIZE_PX, "width": SIZE_PX}
    edges = dict(zip(("shortest_edge", "longest_edge"), EDGES_PX, strict=True))
    processor = {
        "do_resize": True, "size": size if stretch else edges, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": not stretch,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_pad": not stretch,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def _make(library: Any, model_type: str, labels: Any, denoising: int) -> Any:
    resnet = {"embedding_size": 8, "depths": [1, 1, 1, 1], "layer_type": "basic"}
    if model_type == "detr":
        backbone = library.ResNetConfig(hidden_sizes=[8, 8, 16, 16], out_features=["stage4"], **resnet)
        config = library.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
            encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
            decoder_attention_heads=2, num_queries=15, **labels,
        )  # fmt: skip
        return library.DetrForObjectDetection(config)
    if model_type == "yolos":
        config = library.YolosConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=list(EDGES_PX),
            patch_size=16, num_detection_tokens=12, **labels,
        )  # fmt: skip
        return library.YolosForObjectDetection(config)
    stages = ["stage2", "stage3", "stage4"]
    if model_type == "d_fine":
        ones = [1, 1, 1, 1]
        backbone = library.HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 24, 32], stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[16, 24, 32, 48], hidden_sizes=[16, 24, 32, 48], stage_num_blocks=ones,
            stage_numb_of_layers=ones, out_features=stages,
        )  # fmt: skip
    else:
        backbone = library.RTDetrResNetConfig(hidden_sizes=[8, 16, 24, 32], out_features=stages, **resnet)
    channels = [24, 32, 48] if model_type == "d_fine" else [16, 24, 32]
    prefix = {"rt_detr": "RTDetr", "rt_detr_v2": "RTDetrV2", "d_fine": "DFine"}[model_type]
    config = getattr(library, f"{prefix}Config")(
        backbone_config=backbone, encoder_in_channels=channels, encoder_hidden_dim=32, encoder_ffn_dim=32, d_model=32,
        num_queries=20, decoder_layers=2, decoder_ffn_dim=32, decoder_attention_heads=2, encoder_attention_heads=2,
        decoder_in_channels=[32, 32, 32], num_denoising=denoising, **labels,
    )  # fmt: skip
    return getattr(library, f"{prefix}ForObjectDetection")(config)


def processor_of(folder: Path, model_type: str) -> Any:
    """Return the library's own image processor, the one that computes with Pillow."""
    import importlib

    kind = model_type if model_type in BY_EDGES else "rt_detr"
    name = {"detr": "Detr", "yolos": "Yolos", "rt_detr": "RTDetr"}[kind] + "ImageProcessorPil"
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    return getattr(module, name).from_pretrained(folder)
