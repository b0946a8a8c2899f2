"""Ways to call a model and to ask for gradients: name -> what runs on the undivided side and on ours alike."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gigapipe.spatial import Mesh, Plan, SpatialTensor, average_gradients, decompose, gather, shard, stream

IMAGES = torch.rand(4, 3, 23, 18, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
LABELS = torch.tensor([1, 3, 0, 2])
CLINICAL = torch.tensor([[0.3, 1.0], [-0.7, 0.2], [0.1, -1.1], [0.9, 0.4]], dtype=torch.float64)


class Side:
    """The undivided side (`mesh` None), or ours: the same program runs on both."""

    def __init__(self, mesh: Mesh | None, streamed: bool = False):
        self.mesh, self.streamed = mesh, streamed

    def model(self, model: nn.Module) -> nn.Module:
        return decompose(model.double(), self.mesh) if self.mesh else model.double()

    def mine(self, x: torch.Tensor) -> torch.Tensor:
        if not self.mesh:
            return x
        share = len(x) // self.mesh.data
        return x[self.mesh.data_index * share : (self.mesh.data_index + 1) * share]

    def image(self, x: torch.Tensor = IMAGES):
        if not self.mesh:
            return x.clone()
        image = shard(self.mine(x), self.mesh)
        return stream(image, Plan(tile=7)) if self.streamed else image

    @property
    def labels(self) -> torch.Tensor:
        return self.mine(LABELS)

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, self.labels)


def seeded(make: Callable) -> Callable:
    @functools.wraps(make)
    def made(*args):
        torch.manual_seed(1)
        return make(*args).double()

    return made


@seeded
def classifier(channels: int = 6) -> nn.Sequential:
    stem = nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 3, 1, 1)
    return nn.Sequential(*stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@seeded
def dense(out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, out, 3, 1, 1))


def gradients(*modules: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": p.grad for i, m in enumerate(modules) for name, p in m.named_parameters()}


CASES: dict[str, Callable[[Side], dict[str, torch.Tensor]]] = {}
STREAMED: set[str] = set()


def case(name: str, streamed: bool = False) -> Callable:
    def register(function: Callable) -> Callable:
        CASES[name] = function
        if streamed:
            STREAMED.add(name)
        return function

    return register


@case("parts of a model", streamed=True)
def _(side):
    model = side.model(classifier())
    side.loss(model[5:](model[:5](side.image()))).backward()
    return gradients(model)


@case("a training step of a module")
def _(side):
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = classifier()[:7], nn.Linear(8, 4)

        def training_step(self, images):
            return side.loss(self.head(self.encoder(images)))

    torch.manual_seed(2)
    model = side.model(Step())
    model.training_step(side.image()).backward()
    return gradients(model)


@case("checkpointed parts")
def _(side):
    model = side.model(dense())
    checkpoint_sequential(model, 2, side.image(), use_reentrant=False).pow(2).mean().backward()
    return gradients(model)


@case("a checkpointed head")
def _(side):
    model = side.model(classifier())
    side.loss(checkpoint(model[7], model[:7](side.image()), use_reentrant=False)).backward()
    return gradients(model)


@case("autograd.grad", streamed=True)
def _(side):
    model = side.model(classifier())
    loss = side.loss(model(side.image()))
    return dict(enumerate(torch.autograd.grad(loss, list(model.parameters()))))


@case("two inner steps")
def _(side):
    model = side.model(classifier())
    weights = dict(model.named_parameters())
    for _ in range(2):
        loss = side.loss(torch.func.functional_call(model, weights, side.image()))
        found = torch.autograd.grad(loss, list(weights.values()))
        weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), found, strict=True)}
    side.loss(torch.func.functional_call(model, weights, side.image())).backward()
    return gradients(model) | dict(zip(weights, found, strict=True))


@case("functional_call with other leaves")
def _(side):
    model = side.model(classifier())
    weights = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    side.loss(torch.func.functional_call(model, weights, side.image())).backward()
    return {name: w.grad for name, w in weights.items()}


@case("layers replaced afterwards", streamed=True)
def _(side):
    model = side.model(classifier())
    torch.manual_seed(5)
    model[3], model[7] = nn.Conv2d(6, 8, 1).double(), nn.Linear(8, 4).double()
    side.loss(model(side.image())).backward()
    return gradients(model)


class Low(nn.Module):
    def __init__(self, weight):
        super().__init__()
        torch.manual_seed(9)
        self.a = nn.Parameter(torch.randn(len(weight), 2, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(2, weight[0].numel(), dtype=torch.float64))

    def forward(self, weight):
        return weight + (self.a @ self.b).view_as(weight)


@case("low-rank adapters", streamed=True)
def _(side):
    model = side.model(classifier())
    for layer in (model[0], model[7]):
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", Low(layer.weight))
    side.loss(model(side.image())).backward()
    return gradients(model)


@case("weight norm")
def _(side):
    model = classifier()
    weight_norm(model[0]), weight_norm(model[7])
    model = side.model(model)
    side.loss(model(side.image())).backward()
    return gradients(model)


@case("a second module on the image")
def _(side):
    model = side.model(dense(5))
    torch.manual_seed(3)
    decoder = nn.Conv2d(5, 2, 3, padding=1).double()
    decoder(model(side.image())).pow(2).mean().backward()
    return gradients(model, decoder)


@case("criteria with parameters", streamed=True)
def _(side):
    model, dense_model = side.model(classifier()), side.model(dense())
    temperature, scale = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (1.3, 0.7))
    loss = side.loss(model(side.image()) * temperature)
    loss = loss + (dense_model(side.image()) * scale).square().mean() / scale.exp()
    loss.sum().backward()
    return gradients(model, dense_model) | {"temperature": temperature.grad, "scale": scale.grad}


@case("hooks see whole gradients")
def _(side):
    model, seen = side.model(classifier()), {}
    for name, p in model.named_parameters():
        p.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.update({name: p.grad.clone()}))
    side.loss(model(side.image())).backward()
    return seen


@case("an optimiser in the backward pass")
def _(side):
    model = side.model(classifier())
    for p in model.parameters():
        optimizer = torch.optim.SGD([p], lr=0.1)
        p.register_post_accumulate_grad_hook(lambda p, o=optimizer: o.step())
    for _ in range(2):
        model.zero_grad()
        side.loss(model(side.image())).backward()
    return {name: p.detach() for name, p in model.named_parameters()}


@case("after a backward pass that failed")
def _(side):
    model, failing = side.model(classifier()), [True]

    def fail(_):
        if failing[0]:
            raise MemoryError

    model[0].weight.register_post_accumulate_grad_hook(fail)
    try:
        side.loss(model(side.image())).backward()
    except MemoryError:
        failing[0] = False
    model.zero_grad()
    side.loss(model(side.image())).backward()
    return gradients(model)


@case("several losses")
def _(side):
    model = side.model(classifier())
    features = model[:7](side.image())
    side.loss(model[7](features)).backward(retain_graph=True)
    features.square().mean().backward(retain_graph=True)
    torch.autograd.backward([features.abs().mean(), features.exp().mean()])
    return gradients(model)


@case("frozen, then trained")
def _(side):
    model = side.model(classifier().requires_grad_(False))
    model[7].requires_grad_()
    side.loss(model(side.image())).backward()
    first = model[7].weight.grad.clone()
    model.requires_grad_()
    side.loss(model(side.image())).backward()
    return gradients(model) | {"first": first}


@case("a head of features without gradients", streamed=True)
def _(side):
    model = side.model(classifier())
    with torch.no_grad():
        features = model[:7](side.image())
    rows = torch.zeros(len(features), 8, dtype=torch.float64)
    rows[:] = features
    side.loss(model[7](rows)).backward()
    return {"weight": model[7].weight.grad, "bias": model[7].bias.grad}


@case("the image's gradient")
def _(side):
    model = side.model(classifier())
    if not side.mesh:
        whole = IMAGES.clone().requires_grad_()
        side.loss(model(whole)).backward()
        return {"of shards": whole.grad, "of a whole": whole.grad}
    image = side.image()
    image.local.requires_grad_()
    side.loss(model(image)).backward()
    whole = side.mine(IMAGES).clone().requires_grad_()
    side.loss(model(shard(whole, side.mesh))).backward()
    of_shards = gather(SpatialTensor(image.local.grad, image.image_size, side.mesh)).detach()
    return {"of shards": everyones(of_shards, side.mesh), "of a whole": everyones(whole.grad, side.mesh)}


def everyones(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """What data ranks have of a batch, together."""
    whole = torch.zeros(mesh.data * len(x), *x.shape[1:], dtype=x.dtype)
    whole[mesh.data_index * len(x) : (mesh.data_index + 1) * len(x)] = x.as_subclass(torch.Tensor)
    return mesh.everyone.sum_(whole) / mesh.image_ranks


class Excited(nn.Module):
    """Pooled features scale the image that they are of, and so does what is known beside it."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.known = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 8), nn.Linear(2, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, x, clinical):
        x = self.stem(x)
        known = self.known(clinical).tanh()
        x = x * self.squeeze(x.mean((2, 3))).sigmoid()[:, :, None, None] + known[:, :, None, None]
        x = x - x.mean((2, 3), keepdim=True) * 0.5
        return self.head(torch.cat([x.relu().mean((2, 3)), known], 1))


@case("features that meet the image again", streamed=True)
def _(side):
    torch.manual_seed(1)
    model = side.model(Excited())
    side.loss(model(side.image(), side.mine(CLINICAL))).backward()
    return gradients(model)


@case("a penalty on weights, and one weight twice", streamed=True)
def _(side):
    model = side.model(classifier())
    features = model[:7](side.image() * model[7].weight[0, :1])
    loss = side.loss(model[7](features)) + 0.01 * sum(p.square().sum() for p in model.parameters())
    loss.backward()
    return gradients(model)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)])
        self.gain = nn.Parameter(torch.rand(8))
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.norms[0](self.a(x)).relu()
        x = self.norms[1](self.b(x)).relu()
        x = self.norms[2](self.c(x)).relu()
        x = F.batch_norm(x, None, None, self.gain.exp(), self.gain, True)
        return self.head(torch.cat([x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1), x.square().sum((2, 3))], 1))


@case("norms and pools", streamed=True)
def _(side):
    torch.manual_seed(1)
    model = side.model(Normed())
    side.loss(model(side.image())).backward()
    return gradients(model)


@case("a map that is flattened", streamed=True)
def _(side):
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 4)
    model = side.model(nn.Sequential(*layers))
    side.loss(model(side.image())).backward()
    return gradients(model)


@case("images of different sizes", streamed=True)
def _(side):
    model = side.model(nn.Sequential(*classifier()[3:]))
    losses = []
    for i in side.mine(torch.arange(4)):
        image = IMAGES[i : i + 1, :, : 23 - 4 * i, : 18 - 3 * i].repeat(1, 2, 1, 1)
        if side.mesh:
            image = shard(image, side.mesh)
            image = stream(image, Plan(tile=7)) if side.streamed else image
        losses.append(F.cross_entropy(model(image), LABELS[i : i + 1]))
    torch.stack(losses).mean().backward()
    return gradients(model)


@case("averaged once more")
def _(side):
    model = side.model(classifier())
    side.loss(model(side.image())).backward()
    if side.mesh:
        average_gradients(model.parameters(), side.mesh)
    return gradients(model)


# --- What all ranks refuse, with one line ---

REFUSED: dict[str, tuple[Callable, str, str]] = {}
"""Name -> what is refused, what the line says, and what of a mesh there must be several of: data, or image_ranks."""


def refused(name: str, message: str, several: str = "size") -> Callable:
    def register(function: Callable) -> Callable:
        REFUSED[name] = function, message, several
        return function

    return register


@refused("a branch of one data rank", "did not run the same layers", several="data")
def _(side):
    model, other = side.model(classifier()), side.model(dense())
    loss = side.loss(model(side.image()))
    if side.mesh.data_index == 0:
        loss = loss + other(side.image()).square().mean()
    loss.backward()


@refused("a branch with a norm of one data rank", "did not run the same layers", several="data")
def _(side):
    model, branch = side.model(classifier()), side.model(classifier(5))
    loss = side.loss(model(side.image()))
    if side.mesh.data_index == 0:
        loss = loss + side.loss(branch(side.image()))
    loss.backward()


@refused("a branch with dropout of one data rank", "did not run the same layers", several="data")
def _(side):
    model = side.model(classifier())
    image = F.dropout(side.image(), 0.1) if side.mesh.data_index else side.image()
    side.loss(model(image)).backward()


@refused("different models on data ranks", "did not run the same layers", several="data")
def _(side):
    side.model(classifier(5 + side.mesh.data_index))


@refused("batches of different sizes", "batches of different sizes", several="data")
def _(side):
    model = side.model(classifier())
    few = 1 + side.mesh.data_index
    F.cross_entropy(model(shard(IMAGES[:few], side.mesh)), LABELS[:few]).backward()


@refused("other random numbers on each rank", "computed different things of its pooled features", several="image_ranks")
def _(side):
    model = side.model(classifier())
    torch.manual_seed(side.mesh.rank)
    side.loss(model[7](F.dropout(model[:7](side.image()), 0.5))).backward()


@refused("other random numbers on one rank", "computed different things of its pooled features", several="image_ranks")
def _(side):
    model = side.model(classifier())
    torch.manual_seed(side.mesh.rank == 0)
    side.loss(model[7](F.dropout(model[:7](side.image()), 0.5))).backward()


@refused("a gradient of a gradient", "a gradient of a gradient")
def _(side):
    model = side.model(classifier())
    loss = side.loss(model(side.image()))
    found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(g.square().sum() for g in found).backward()


@refused("a loss that forgot where it came from", "that something beside torch's operations made", several="data")
def _(side):
    model = side.model(classifier())
    side.loss(model(side.image()).as_subclass(torch.Tensor).clone()).backward()


@refused("a norm of pooled features that was put in later", "would see one rank's batch alone", several="data")
def _(side):
    model = side.model(classifier())
    model[6] = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8).double())
    side.loss(model(side.image())).backward()


class Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx, grad):
        return (grad / (ctx.shape[2] * ctx.shape[3]))[:, :, None, None].expand(ctx.shape)


@refused("weights that FSDP shards", "FSDP (fully_shard) would shard weights")
def _(side):
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():  # each rank by itself: what is refused needs no other
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = side.model(classifier())
    fully_shard(model[3])
    fully_shard(model)
    model(side.image())


@refused("a custom function from an image to a plain tensor", "made a plain tensor of an image")
def _(side):
    Pool.apply(side.model(dense())(side.image())).square().mean().backward()


# --- Changes in place: as torch's, or refused ---

IN_PLACE: dict[str, Callable] = {
    "a view of a part": lambda x: x[:, :, 2:5][:, :3].mul_(3),
    "a view of a view": lambda x: x[:, 1:].permute(0, 2, 3, 1).mul_(3),
    "chunks": lambda x: x.chunk(2, 1)[1].mul_(3),
    "an image with a part": lambda x: (x[:, :, 2:5], x.mul_(3))[0],
    "an image with a view": lambda x: (x.permute(0, 2, 3, 1), x.mul_(3))[0],
    "an image with a view of a part": lambda x: (x[:, :, 2:5][:, :3], x.mul_(3))[0],
    "a padded image": lambda x: F.pad(x, (0, 0, 0, 0)).mul_(3),
    "an image padded on one side": lambda x: F.pad(x, (0, 0, 0, 2)).mul_(3),
    "dropout of a view": lambda x: F.dropout2d(x[:, :3], 1.0, True, inplace=True),
    "dropout of a part": lambda x: F.dropout2d(x[:, :, 3:], 1.0, True, inplace=True),
    "activation of a view": lambda x: F.relu_(x[:, :3] - 0.5),
    "a detached image": lambda x: x.detach().mul_(3),
    "a transposed image": lambda x: x.transpose(1, 2).unsqueeze(0).add_(1),
    "what is of one type already": lambda x: x.double().mul_(3),
}
"""Name -> what is done to an image, whose own value afterwards, and what is returned, are compared."""


# --- What torch refuses ---

INVALID: dict[str, Callable] = {
    "a divisor of 0": lambda x: F.avg_pool2d(x, 2, divisor_override=0),
    "a dimension twice": lambda x: x.mean((2, 2, 3)),
    "a dimension twice, of which one is negative": lambda x: x.sum((2, 3, -1)),
    "a dimension that there is not": lambda x: x.sum(5),
    "a negative dimension that there is not": lambda x: x.softmax(-5),
    "a permutation by what there is not": lambda x: x.permute(0, 1, 2, 7),
    "a long output_padding": lambda x: F.conv_transpose2d(x, x.new_ones(8, 2, 3, 3), stride=2, output_padding=2),
    "negative padding": lambda x: F.conv2d(x, torch.ones(2, 8, 3, 3, dtype=x.dtype), padding=-1),
    "a stride of 0": lambda x: F.max_pool2d(x, 2, 0),
    "too many channels": lambda x: F.conv2d(x, torch.ones(2, 5, 3, 3, dtype=x.dtype)),
    "groups that do not divide": lambda x: F.conv2d(x, torch.ones(3, 4, 3, 3, dtype=x.dtype), groups=2),
    "shuffled channels that do not divide": lambda x: F.pixel_shuffle(x, 3),
    "two sizes": lambda x: F.interpolate(x, size=(5, 5), scale_factor=2),
    "a dropout of 2": lambda x: F.dropout(x, 2.0),
    "flattened from where there is nothing": lambda x: x.flatten(4),
}
