"""Projector and predictor, alone and in the reference's first step."""

import copy

import pytest
import torch
from reference import TRAJECTORY, encoder, encoder_state, head_state, learner_state, tensor
from torch import nn

from byol_wrap import BYOL
from byol_wrap.backbone.encoder import in_features, set_in_features
from byol_wrap.methods.heads import mlp, simsiam_projector
from byol_wrap.methods.processes import SharedBatchNorm1d


@pytest.mark.parametrize("size", [10, None])
def test_head_is_linear_norm_relu_linear(size):
    head = mlp(size, 12, 5)
    if size is None:
        set_in_features(head, 10)
    first, norm, _, last = head
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (first.in_features, first.out_features, first.bias is not None) == (10, 12, True)
    assert (norm.num_features, norm.eps, norm.momentum, norm.affine) == (12, 1e-5, 0.1, True)
    assert norm.track_running_stats
    assert (last.in_features, last.out_features, last.bias) == (12, 5, None)
    assert head(torch.rand(3, 10)).shape == (3, 5)


@pytest.mark.parametrize(
    ("sync", "kind"), [(True, SharedBatchNorm1d), (False, nn.BatchNorm1d), (None, nn.BatchNorm1d)]
)
def test_norm_is_shared_between_processes_on_demand(sync, kind):
    norm = mlp(3, 4, 2, sync_batchnorm=sync)[1]
    assert type(norm) is kind
    assert (norm.num_features, norm.eps, norm.momentum) == (4, 1e-5, 0.1)


def test_size_is_unknown_until_it_is_set():
    head = mlp(None, 4, 2)
    assert in_features(head) is None
    set_in_features(head, 7)
    assert in_features(head) == 7
    assert in_features(mlp(3, 4, 2)) == 3


def test_optimizer_built_before_the_size_is_known_trains_the_head():
    torch.manual_seed(0)
    head = mlp(None, 4, 2)
    parameters = list(head.parameters())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    set_in_features(head, 7)
    assert all(new is old for new, old in zip(head.parameters(), parameters, strict=True))
    before = [parameter.detach().clone() for parameter in head.parameters()]
    head(torch.rand(8, 7)).square().sum().backward()
    optimizer.step()
    # The first bias has no gradient to speak of: BatchNorm takes it out again.
    for index in (0, 2, 3, 4):
        assert not torch.equal(parameters[index], before[index])


def test_setting_the_size_draws_what_a_linear_draws():
    torch.manual_seed(0)
    head = mlp(None, 4, 2, sync_batchnorm=False).double()
    torch.manual_seed(1)
    set_in_features(head, 7)
    torch.manual_seed(1)
    expected = nn.Linear(7, 4, dtype=torch.float64)
    assert torch.equal(head[0].weight, expected.weight)
    assert torch.equal(head[0].bias, expected.bias)
    assert head[1].num_batches_tracked == 0


@pytest.mark.parametrize("shared", [True, False])
def test_a_head_without_sizes_copies_whole(shared):
    head = simsiam_projector(None, 5, sync_batchnorm=shared).double().eval()
    copied = copy.deepcopy(head)
    for one in (head, copied):
        assert not any(module.training for module in one.modules())
        torch.manual_seed(0)
        set_in_features(one, 7)
    states = head.state_dict(), copied.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        assert value.dtype == states[1][name].dtype
        assert value.data_ptr() != states[1][name].data_ptr()
    assert [type(layer) for layer in copied] == [type(layer) for layer in head]
    assert type(copied[1]) is (SharedBatchNorm1d if shared else nn.BatchNorm1d)
    assert copied[7].weight is None


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", None])
@pytest.mark.parametrize(("position", "name"), [(1, "hidden"), (2, "output")])
def test_sizes_that_are_not_positive_integers_are_refused(position, name, size):
    sizes = [4, 4, 4]
    sizes[position] = size
    with pytest.raises(ValueError, match=f"The {name} size .* positive integer") as error:
        mlp(*sizes)
    assert repr(size) in str(error.value)


# Against the reference


def test_embedding_projection_and_prediction_equal_the_reference():
    parameters = TRAJECTORY["online_init"]
    net, projector, predictor = encoder(), mlp(8, 24, 6).double(), mlp(6, 24, 6).double()
    net.load_state_dict(encoder_state(parameters))
    projector.load_state_dict(head_state(parameters, "projector"))
    predictor.load_state_dict(head_state(parameters, "predictor"))

    embedding = net(tensor(TRAJECTORY["view1"][0]))
    projection = projector(embedding)
    prediction = predictor(projection)

    figures = TRAJECTORY["first_forward_view1"]
    for name, value in (
        ("embedding", embedding),
        ("projection", projection),
        ("prediction", prediction),
    ):
        torch.testing.assert_close(
            value, tensor(figures[name]), rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_first_loss_of_a_learner_equals_the_reference():
    learner = BYOL(encoder(), hidden_layer=-1, projection_size=6, projection_hidden_size=24)
    learner.load_state_dict(learner_state(TRAJECTORY["online_init"], TRAJECTORY["target_init"]))
    loss = learner(tensor(TRAJECTORY["view1"][0]), tensor(TRAJECTORY["view2"][0]))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(TRAJECTORY["loss"][0], abs=1e-9)


def test_statistics_of_both_views_enter_one_after_the_other():
    learner = BYOL(encoder(), hidden_layer=-1, projection_size=6, projection_hidden_size=24)
    learner.load_state_dict(learner_state(TRAJECTORY["online_init"], TRAJECTORY["target_init"]))
    views = [tensor(TRAJECTORY[name][0]) for name in ("view1", "view2")]
    learner(*views)
    for side, parameters in (("online", "online_init"), ("target", "target_init")):
        mean = torch.zeros(14, dtype=torch.float64)
        first = encoder_state(TRAJECTORY[parameters])
        for view in views:
            hidden = view @ first["0.weight"].T + first["0.bias"]
            mean = 0.9 * mean + 0.1 * hidden.mean(dim=0)
        norm = getattr(learner, side).net[1]
        torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=1e-12)
