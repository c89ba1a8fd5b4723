"""One picture of a batch beside others that are held: what reaches it is what the whole batch sends."""

import pytest
import torch

from textleak.clients.batch_norm_train import BatchNormTrain
from textleak.matching.factored import Capture, requiring_grad
from textleak.matching.single import form
from textleak.models.beside import beside, held_at, loss_beside
from textleak.models.loading.images import load_image_model
from textleak.models.networks import CifarResNet, draw_uniformly

LABELS = [2, 1, 2]


def batch(activation="sigmoid"):
    """ResNet-20's stages with one block each: what is shown doesn't depend on how deep a network is."""
    model = load_image_model("resnet20", size=8, num_labels=5, device="cpu", weights_seed=0)
    network = CifarResNet(3, model.num_labels, blocks=1, activation=activation, strides=True)
    draw_uniformly(network, torch.Generator().manual_seed(0))
    model = BatchNormTrain().prepare(model.with_network(network.eval())).double()
    generator = torch.Generator().manual_seed(3)
    return model, torch.rand(len(LABELS), *model.shape, generator=generator, dtype=torch.float64)


def own_gradients(model, pixels_KCHW, label):
    parameters = model.parameters
    with requiring_grad(parameters.values()):
        loss = loss_beside(model, pixels_KCHW, label, 1 / len(LABELS)).sum()
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_a_batchs_gradient_is_the_sum_of_the_parts_of_its_pictures_each_beside_the_others(activation):
    model, pixels_BCHW = batch(activation)
    targets = model.targets(LABELS)
    with requiring_grad(model.parameters.values()):
        loss = model.loss(pixels_BCHW[None], targets.expand(1)).sum()
        whole = torch.autograd.grad(loss, list(model.parameters.values()))
    held = held_at(model, pixels_BCHW, targets)
    parts = [
        own_gradients(beside(model, held, b), pixels_BCHW[b : b + 1], label) for b, label in enumerate(LABELS)
    ]
    for name, gradient in zip(model.parameters, whole, strict=True):
        torch.testing.assert_close(held.gradient[name], gradient)
        torch.testing.assert_close(sum(part[name] for part in parts), gradient, rtol=1e-8, atol=1e-10)


def test_a_pictures_slope_is_that_of_the_whole_batchs_loss_and_candidates_do_not_mix():
    model, pixels_BCHW = batch()
    targets = model.targets(LABELS)
    own = pixels_BCHW.clone().requires_grad_()
    (slopes_BCHW,) = torch.autograd.grad(model.loss(own[None], targets.expand(1)).sum(), own)
    one = beside(model, held_at(model, pixels_BCHW, targets), 1)
    others = torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    pixels_KCHW = torch.cat([others[:1], pixels_BCHW[1:2], others[1:]]).requires_grad_()
    losses_K = loss_beside(one, pixels_KCHW, LABELS[1], 1 / len(LABELS))
    (slopes_KCHW,) = torch.autograd.grad(losses_K.sum(), pixels_KCHW)
    torch.testing.assert_close(slopes_KCHW[1], slopes_BCHW[1], rtol=1e-8, atol=1e-12)
    alone_K = torch.cat([loss_beside(one, x[None], LABELS[1], 1 / len(LABELS)) for x in pixels_KCHW])
    torch.testing.assert_close(losses_K, alone_K)


def test_the_engine_forms_a_candidates_part_by_rules():
    model, pixels_BCHW = batch()
    held = held_at(model, pixels_BCHW, model.targets(LABELS))
    one = beside(model, held, 0)
    others = torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def losses(leaves):
        return loss_beside(one, leaves["x"], LABELS[0], 1 / len(LABELS))

    capture = Capture(one.network, list(one.parameters))
    capture.check(losses, {"x": others})
    assert capture.formed_names == ()
    _, found = capture.contributions(losses, {"x": others}, create_graph=False)
    for k, x_CHW in enumerate(others):
        for name, gradient in own_gradients(one, x_CHW[None], LABELS[0]).items():
            formed = form(found[name], tuple(gradient.shape))[k]
            torch.testing.assert_close(formed, gradient, rtol=1e-8, atol=1e-10)
