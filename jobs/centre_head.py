"""A plug-in head: CenterNet, whose peaks in a heat map are the centres of objects.

Zhou et al., "Objects as Points", arXiv:1904.07850. `model.family: centre_head:CentreHead` in a job file that lies
beside this file is all that is needed; see `jobs/plugin_head.yaml`.
"""

import cv2
import numpy as np

from batchdet.plugin import Head, Preprocess


class CentreHead(Head):
    """Outputs: `heatmap` (C, h, w) of scores per class, `size` (2, h, w) of width and height in canvas pixels."""

    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    labels = ("dark thing", "bright thing")

    def decode(self, outputs, canvas):
        """Take every cell that is the highest of its neighbourhood, class by class."""
        heat = np.ascontiguousarray(outputs["heatmap"].transpose(1, 2, 0))  # (h, w, C)
        highest = cv2.dilate(heat, np.ones((3, 3), np.uint8)).reshape(heat.shape)
        rows, columns, class_ids = np.nonzero((heat == highest) & (heat > 0.05))
        stride = canvas[0] / heat.shape[1]
        centres = np.stack([columns + 0.5, rows + 0.5], axis=1) * stride
        halves = outputs["size"][:, rows, columns].T / 2
        boxes = np.concatenate([centres - halves, centres + halves], axis=1)
        return boxes, heat[rows, columns, class_ids], class_ids
