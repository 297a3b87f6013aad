"""What all tests share."""

import warnings

import pytest
import torch

collect_ignore = ["zoo/experts"]  # of libraries that are not here; its slow test imports them


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Threads only wait for each other on tensors of the tests' size."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def exact_products() -> None:
    """TF32 keeps ten bits of what is compared with the CPU's."""
    if torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions of PyTorch name it otherwise, too
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
