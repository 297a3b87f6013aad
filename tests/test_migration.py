"""Programs written for byol-pytorch run after changing the import."""

import kornia
import pytest
import torch
from torch import nn
from torchvision import models

from byol_wrap import BYOL

OUT_OF_RANGE = pytest.mark.filterwarnings("ignore:images should be floats in")


def random_images() -> torch.Tensor:
    return torch.randn(4, 3, 64, 64)  # its README feeds normal noise


@OUT_OF_RANGE
def test_the_usual_loop() -> None:
    net = models.resnet18()
    learner = BYOL(net, image_size=64, hidden_layer="avgpool")
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-4)
    before = net.conv1.weight.clone()
    for _ in range(2):
        loss = learner(random_images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average()
    assert not torch.equal(before, net.conv1.weight)
    models.resnet18().load_state_dict(net.state_dict())


@OUT_OF_RANGE
def test_its_options_by_name() -> None:
    learner = BYOL(
        models.resnet18(),
        image_size=64,
        hidden_layer="avgpool",
        projection_size=32,
        projection_hidden_size=64,
        moving_average_decay=0.9,
    )
    projection, embedding = learner(random_images(), return_embedding=True)
    assert (projection.shape, embedding.shape) == ((4, 32), (4, 512))
    embedding = learner(random_images(), return_embedding=True, return_projection=False)
    assert embedding.shape == (4, 512)


@OUT_OF_RANGE
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_its_augmentations_and_a_childs_index() -> None:
    flip = nn.Sequential(kornia.augmentation.RandomHorizontalFlip())
    blur = nn.Sequential(
        kornia.augmentation.RandomHorizontalFlip(),
        kornia.filters.GaussianBlur2d((3, 3), (1.5, 1.5)),
    )
    learner = BYOL(
        models.resnet18(), image_size=64, hidden_layer=-2, augment_fn=flip, augment_fn2=blur
    )
    assert learner.representation is not None
    assert (learner.representation.layer, learner.representation.size) == ("avgpool", 512)
    learner(random_images()).backward()


@pytest.mark.parametrize("option", ["use_momentum", "use_simplicial_embeddings"])
def test_what_is_not_here_is_an_error_that_names_it(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        BYOL(models.resnet18(), 64, **{option: False})
