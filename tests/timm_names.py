"""Names that timm gives to the tensors of batchdet's published backbones."""

import re


def timm_name(name: str) -> str:
    """Name a tensor of batchdet's as timm does (compared with timm 1.0.31, whose features were equal bit by bit)."""
    for pattern, text in (
        (r"stem\.0\.", "conv1."), (r"stem\.1\.", "bn1."), ("stage4", "layer1"), ("stage8", "layer2"),
        ("stage16", "layer3"), ("stage32", "layer4"), (r"convs\.0\.0", "conv1"), (r"convs\.0\.1", "bn1"),
        (r"convs\.1\.0", "conv2"), (r"convs\.1\.1", "bn2"), (r"convs\.2\.0", "conv3"), (r"convs\.2\.1", "bn3"),
        ("shortcut", "downsample"), (r"trunk\.", ""), ("class_token", "cls_token"), ("positions", "pos_embed"),
        (r"patches", "patch_embed.proj"), ("norm_attention", "norm1"), ("norm_mlp", "norm2"),
        (r"attention\.to_qkv", "attn.qkv"), (r"attention\.to_out", "attn.proj"), (r"mlp\.0", "mlp.fc1"),
        (r"mlp\.2", "mlp.fc2"),
    ):  # fmt: skip
        name = re.sub(pattern, text, name)
    return name
