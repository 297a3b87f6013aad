"""ultralytics: other outputs in training than in eval; detectors of three scales."""

from functools import partial
from typing import Any

from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks

from experts.answer import Expert, Library


def built(kind: str, name: str, **options: Any) -> Any:
    """A net from the library's own description of it."""
    return partial(getattr(tasks, kind), f"{name}.yaml", verbose=False, **options)


def nets() -> list[Expert]:
    """Classifiers by their head's input; detectors by the backbone's or the neck's deepest map."""
    net = Library("ultralytics")

    def classifier(name: str, head: int) -> Expert:
        return net(name, built("ClassificationModel", name, nc=5), 64, f"model.{head}.linear<")

    def detector(name: str, backbone: int, neck: int, kind: str = "DetectionModel") -> Expert:
        answers = f"model.{backbone}>mean | model.{neck}>mean | refuse"
        return net(name, built(kind, name), 64, answers)

    def backbone() -> nn.Module:
        model = tasks.DetectionModel("yolov8n.yaml", verbose=False).model
        return nn.Sequential(*list(model)[:10])

    return [
        classifier("yolov8n-cls", 9),
        classifier("yolo11n-cls", 10),
        classifier("yolo12n-cls", 9),
        classifier("yolo26n-cls", 10),
        detector("yolov8n", 9, 21),
        detector("yolo11n", 10, 22),
        detector("yolov5n", 9, 23),
        detector("yolov9t", 9, 21),
        detector("yolov10n", 10, 22),
        detector("yolo26n", 10, 22),
        detector("yolov3-tiny", 13, 15),
        detector("yolov8n-seg", 9, 21, "SegmentationModel"),
        detector("yolov8n-pose", 9, 21, "PoseModel"),
        detector("yolov8n-obb", 9, 21, "OBBModel"),
        net("yolov8n, its backbone alone", backbone, 64, ">mean"),
        net("YOLO(...) in place of its model", lambda: YOLO("yolov8n-cls.yaml"), 64, "refuse"),
    ]
