"""Pretrained weights: fetched once and verified, taken as they were learnt, and what of a network is trained."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from cohorts import training, weights
from launching import gigapipe

from gigapipe.configuration.configuration import Network
from gigapipe.errors import InputError, Unavailable
from gigapipe.models import RESNETS, pretrained
from gigapipe.models.efficientnet import EfficientNetLite0
from gigapipe.models.networks import classifier
from gigapipe.models.trained_layers import freeze, training_mode
from gigapipe.published_weights import OFFICIAL, of_resnet
from gigapipe.pyramids import Pyramid
from gigapipe.spatial import Mesh, Plan, decompose, shard, stream
from gigapipe.training.canvases import Canvases
from gigapipe.training.weight_files import load_foreign


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server that has the official weights of a ResNet-18, of random numbers; `asked` is what it was asked for."""
    torch.manual_seed(0)
    torch.save(RESNETS["resnet18"](1000).state_dict(), tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(OFFICIAL, "resnet18", of_resnet(f"resnet18-{digits}.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    class Handler(BaseHTTPRequestHandler):
        asked: list[str] = []
        content_of: dict[str, bytes | None] = {"/good": content, "/wrong": content[:-1] + b"?", "/silent": None}

        def do_GET(self):
            folder, _, name = self.path.rpartition("/")
            self.asked.append(name)
            if folder not in self.content_of:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if (body := self.content_of[folder]) is None:
                return stopped.wait(20)
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    stopped = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.asked, running.address = Handler.asked, f"http://127.0.0.1:{running.server_port}"
        yield running
        stopped.set()
        running.shutdown()


def test_official_weights_are_fetched_once_and_verified(server, tmp_path, monkeypatch):
    name, cache = OFFICIAL["resnet18"].file, tmp_path / "home/hub/checkpoints"
    with pytest.raises(InputError, match=rf"{name} does not exist; download it with `gigapipe weights resnet18`"):
        pretrained.kept("resnet18")
    for folder, error, said in (
        ("wrong", InputError, "invalid hash value"),
        ("missing", Unavailable, "404"),
        ("silent", Unavailable, "timed out"),
    ):
        monkeypatch.setattr(pretrained, "TIMEOUT", 1.0)
        with pytest.raises(error, match=said):
            pretrained.fetch("resnet18", f"{server.address}/{folder}")
        assert not list(cache.iterdir()) and socket.getdefaulttimeout() is None
    server.asked.clear()
    for copy in ("a.pth", "b.pth"):
        said = gigapipe(
            "weights", "resnet18", "--server", f"{server.address}/good/", "--output", tmp_path / copy
        ).stdout
        assert f"{copy}: official ImageNet weights of resnet18, BSD-3-Clause" in said
    assert server.asked == [name] and pretrained.kept("resnet18") == cache / name
    assert (tmp_path / "b.pth").read_bytes() == (tmp_path / "published.pth").read_bytes()
    damaged = bytearray((cache / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (cache / name).write_bytes(damaged)
    again = gigapipe("weights", "resnet18", check=False)
    assert again.returncode != 0 and "it is damaged" in again.stdout


def test_efficientnet_sees_slides_as_its_weights_saw_images():
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    found = {name: value.double() for name, value in load_foreign(pretrained.kept("efficientnet_lite0")).items()}
    theirs.double().eval()
    theirs.load_state_dict(found)
    for norm in ("frozen", "batch"):
        ours = classifier("efficientnet_lite0", {}, 2, 64, norm, "average", 64).double().eval()
        pretrained.take_imagenet(ours, "efficientnet_lite0", found, "weights")
        rgb = torch.rand(1, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            stem = theirs._bn0(theirs._conv_stem((255 * rgb - 127) / 128))
            own = ours.features.network._bn0(ours.features.network._conv_stem(1 - rgb))
            torch.testing.assert_close(own[..., 1:-1, 1:-1], stem[..., 1:-1, 1:-1])
            features = theirs.extract_features((255 * rgb - 127) / 128)
            assert ours.features(1 - rgb).shape == features.shape == (1, 1280, 2, 2)
    assert torch.equal(ours.features.network._blocks[9]._expand_conv.weight, theirs._blocks[9]._expand_conv.weight)


def test_features_of_all_stages_are_those_of_each_and_exact_by_tiles():
    torch.manual_seed(0)
    model = EfficientNetLite0("frozen", "all").double().eval()
    image, stages = torch.rand(1, 3, 160, 128, dtype=torch.float64), {}
    for i in model.ends:
        model.network._blocks[i].register_forward_hook(lambda module, inputs, out, i=i: stages.update({i: out}))
    whole = model(image)
    assert whole.shape == (1, 784, 5, 4) and len(stages) == 7
    means = torch.cat([each.mean((2, 3)) for each in stages.values()], 1)
    torch.testing.assert_close(whole.mean((2, 3)), means)

    odd = torch.rand(1, 3, 150, 109, dtype=torch.float64)  # sizes that are halved with a rest
    expected = model(odd).mean((2, 3))
    decompose(model, Mesh())
    found = model(stream(shard(odd, Mesh()), Plan(tile=2, workers=2))).mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options, norm",
    [
        ({}, "batch"),
        ({"weights": "imagenet"}, "frozen"),
        ({"weights": "imagenet", "norm": "batch"}, "batch"),
        ({"network": "mine.py:net", "weights": "w.pt"}, "batch"),
    ],
)
def test_norms_are_frozen_where_weights_are_given(options, norm):
    assert Network.of(options).norm == norm


@pytest.mark.parametrize(
    "options, said",
    [
        ({"network": "resnet10", "weights": "imagenet"}, "resnet10 has no official weights; resnet18, "),
        ({"train": "head"}, "the other layers would keep random weights"),
        ({"network": "efficientnet_lite0", "norm": "group"}, "efficientnet_lite0 has batch or frozen; found group"),
        ({"network": "efficientnet_lite0", "width": 8}, "width: is an option of ResNets; remove it"),
        ({"network": "resnet18", "stages": "all"}, "stages: is an option of efficientnet_lite0; remove it"),
    ],
)
def test_what_does_not_go_together_is_said(options, said):
    with pytest.raises(InputError, match=said):
        Network.of(options)


@pytest.mark.parametrize("network", ["resnet10", "efficientnet_lite0"])
@pytest.mark.parametrize("train", ["head", "last"])
def test_what_is_not_trained_computes_as_in_prediction(network, train):
    model = classifier(network, {}, 2, 64, "batch", "attention", 64)
    freeze(model, train, network)
    training_mode(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    stage = "layer4." if network == "resnet10" else "features.network._conv_head"
    assert {"fc.weight", "avgpool.project.weight"} <= trained
    assert any(name.startswith(stage) for name in trained) == (train == "last")
    assert not trained & {"conv1.weight", "features.network._blocks.0._bn1.weight"}
    frozen = {n for n, m in model.named_modules() if n and not m.training and list(m.parameters())}
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n for n in norms if f"{n}.weight" not in trained} == norms & frozen and norms & frozen


def test_a_head_is_trained_on_features_that_are_computed_once(small_cohort, tmp_path, monkeypatch):
    """Whole and on two ranks alike; as if features were computed in each step; all other weights stay."""
    torch.manual_seed(1)
    torch.save(RESNETS["resnet10"](1000, width=8).state_dict(), tmp_path / "given.pth")
    read = Canvases.batch
    seen = []

    def counted(self, indices, augmentations=None, streaming=None):
        seen.extend((self.slides[i], augmentations[0].symmetry) for i in indices)
        return read(self, indices, augmentations, streaming)

    monkeypatch.setattr(Canvases, "batch", counted)
    found = {}
    for name, mesh, more in (
        ("one", (1, 1, 1), ()),
        ("two", (1, 1, 2), ()),
        ("data", (2, 1, 1), ()),
        ("each step", (1, 1, 1), ("--shift", 1e-9)),  # of less than a pixel: what comes again is not known to
    ):
        seen.clear()
        options = ("--weights", tmp_path / "given.pth", "--train", "head", "--least-steps", 0, *more)
        arguments = training(small_cohort, tmp_path / name / "model.pt", mesh, 12, more=options)
        gigapipe(*arguments, ranks=mesh[0] * mesh[2])
        found[name] = weights(tmp_path / name / "model.pt")
        if name == "one":
            assert len(seen) == len(set(seen)) < 8 * 12
        if name == "each step":
            assert len(seen) > len(set(seen))
    given = weights_of(tmp_path / "given.pth")
    for name, own in found.items():
        body = {n: v for n, v in own.items() if not n.startswith("fc.")}
        assert all(torch.equal(body[n], given[n]) for n in ("layer4.0.conv2.weight", "bn1.running_var")), name
        torch.testing.assert_close(own["fc.weight"], found["one"]["fc.weight"], rtol=1e-4, atol=1e-6)


def test_gated_attention_is_trained_on_feature_maps_that_are_kept(small_cohort, tmp_path, monkeypatch):
    """On one rank and on data ranks, alike to what is trained when maps are computed in each step."""
    torch.manual_seed(1)
    torch.save(RESNETS["resnet10"](1000, width=8).state_dict(), tmp_path / "given.pth")
    options = (
        "--weights",
        tmp_path / "given.pth",
        "--train",
        "head",
        "--pool",
        "gated",
        "--learning-rate",
        0.01,
        "--least-steps",
        0,
        "--symmetries",
        "none",
    )
    seen, read = [], Canvases.batch

    def counted(self, indices, *more):
        seen.extend(indices)
        return read(self, indices, *more)

    monkeypatch.setattr(Canvases, "batch", counted)
    found, read_of = {}, {}
    for name, mesh, shift in (("kept", (1, 1, 1), 0), ("data", (2, 1, 1), 0), ("each step", (1, 1, 1), 1e-9)):
        seen.clear()
        arguments = training(small_cohort, tmp_path / name / "model.pt", mesh, 6, more=(*options, "--shift", shift))
        gigapipe(*arguments, ranks=mesh[0])
        found[name], read_of[name] = weights(tmp_path / name / "model.pt"), len(seen)
    assert read_of["kept"] < 0.5 * read_of["each step"]
    for name, own in found.items():
        for weight in ("fc.weight", "avgpool.gate.weight", "avgpool.project.weight", "avgpool.score.weight"):
            torch.testing.assert_close(own[weight], found["kept"][weight], rtol=1e-3, atol=1e-5, msg=f"{name} {weight}")
    assert found["kept"]["avgpool.score.weight"].abs().max() > 0.01  # which begins as zero


@pytest.mark.parametrize("how", [("probe",), ("head", "--least-steps", 0, "--pool", "gated")])
def test_features_that_are_kept_are_not_computed_again(small_cohort, tmp_path, monkeypatch, how):
    """By another fold, or a prediction; what comes of them is the same to the bit, and what is damaged is not used."""
    torch.manual_seed(1)
    for name in ("given", "others"):
        torch.save(RESNETS["resnet10"](1000, width=8).state_dict(), tmp_path / f"{name}.pth")
    seen, read = [], Canvases.batch
    monkeypatch.setattr(Canvases, "batch", lambda *args, **more: seen.append(args[1]) or read(*args, **more))
    kept = ("--features", tmp_path / "features")

    def run(name: str, *more, given="given") -> dict:
        options = ("--weights", tmp_path / f"{given}.pth", "--train", *how, *more)
        seen.clear()
        gigapipe(*training(small_cohort, tmp_path / name / "model.pt", more=options))
        return weights(tmp_path / name / "model.pt")

    def predicted(name: str, *more) -> str:
        common = ["--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids"]
        seen.clear()
        gigapipe("predict", *common, "--model", tmp_path / "first/model.pt", "--output", tmp_path / name, *more)
        return (tmp_path / name).read_text()

    plain, first = run("plain"), run("first", *kept)
    computed = len(seen)
    assert all(torch.equal(plain[name], value) for name, value in first.items())
    again = run("again", *kept)
    assert not seen and all(torch.equal(again[name], value) for name, value in first.items())
    run("other fold", *kept, "--fold", 1)
    assert 0 < len(seen) < computed
    expected = predicted("plain.tsv")
    of_all = len(seen)
    assert predicted("kept.tsv", *kept) == expected and len(seen) < of_all

    files = sorted((tmp_path / "features").rglob("*.pt"))
    for path in files:
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    assert all(torch.equal(first[name], value) for name, value in run("damaged", *kept).items())
    assert len(seen) == computed
    run("others", *kept, given="others")
    assert len(seen) == computed and len(list((tmp_path / "features").iterdir())) == 2
    box = Pyramid.tissue.fget
    monkeypatch.setattr(Pyramid, "tissue", property(lambda own: box(own) | {"box_um": [0, 0, 300, 300]}))
    run("another outline", *kept)
    assert len(seen) == computed  # of other pixels
    record = json.loads((tmp_path / "again/training.json").read_text())
    assert record["features_read"] == computed


def weights_of(path):
    return torch.load(path, weights_only=True)
