"""Lets a CUDA build of torchvision be imported beside a CPU build of torch, for its transforms, which are plain Python.

Its compiled operators cannot load there, and its import fails because two of them are not declared. `make vllm-env`
lays this file beside a .pth file of its environment, so that the processes that vLLM starts have it, too. Users have a
torchvision that belongs to their torch.
"""

import sys
from importlib.abc import MetaPathFinder

LIBRARIES = []  # an operator is declared as long as its library is held


class Declares(MetaPathFinder):
    """Finds nothing; declares the operators just before torchvision is imported."""

    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
                for operator in ("nms", "qnms"):
                    LIBRARIES[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Declares())
