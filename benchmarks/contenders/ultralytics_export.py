"""Make Ultralytics' own OpenVINO export of a checkpoint, before the clock runs: FILE.pt becomes FILE_openvino_model."""

import sys

from ultralytics import YOLO


def main() -> None:
    """Export with free height and width, so that canvases may be rectangular."""
    print(YOLO(sys.argv[1]).export(format="openvino", imgsz=640, dynamic=sys.argv[2:] != ["static"]))


if __name__ == "__main__":
    main()
