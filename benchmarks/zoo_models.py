"""Models that nobody here wrote, by library and family: how each is made, without its weights, and for which image.

Four libraries, of which each is imported when one of its models is made: timm, segmentation_models_pytorch (smp),
torchvision and MONAI. Images are as small and as uneven as a model takes them.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

LIBRARIES = {"timm": "timm", "smp": "segmentation_models_pytorch", "torchvision": "torchvision", "monai": "monai"}
"""What each is imported as."""
SIZE = 67, 53


class Entry(NamedTuple):
    library: str
    family: str
    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, int] = SIZE
    """Rows and columns of the image."""
    channels: int = 3


@functools.cache
def let_torchvision_import() -> None:
    """Beside a torch that its kernels were not built for, torchvision imports once their names are declared."""
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        torch.ops.load_library(str(folder / "_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")


TIMM = {
    "resnet": "resnet18 resnet26d resnet50 resnet26t resnetblur18 resnetaa50 test_resnet",
    "resnext, se, eca": "resnext26ts seresnet18 seresnext26d_32x4d ecaresnet26t skresnet18 legacy_seresnet18 "
    "gcresnext26ts seresnext26ts eca_resnext26ts",
    "resnest": "resnest14d resnest26d",
    "res2net": "res2net50_14w_8s",
    "resnetv2, bit": "resnetv2_50 resnetv2_50x1_bit resnetv2_18",
    "regnet": "regnetx_002 regnety_002 regnetz_005 regnetv_040",
    "densenet": "densenet121 densenetblur121d",
    "efficientnet": "efficientnet_b0 tf_efficientnet_b0 tf_efficientnet_lite0 efficientnet_es tf_efficientnetv2_b0 "
    "efficientnetv2_rw_t gc_efficientnetv2_rw_t efficientnet_blur_b0 test_efficientnet test_efficientnet_gn "
    "test_efficientnet_ln test_efficientnet_evos efficientnet_x_b3",
    "mobilenet": "mobilenetv2_050 mobilenetv3_small_050 tf_mobilenetv3_small_075 mobilenetv4_conv_small_050 "
    "mobilenetv4_hybrid_medium_075 mobilenetv1_100 lcnet_050 tinynet_e mnasnet_small fbnetc_100 hardcorenas_a "
    "spnasnet_100 semnasnet_075 mobilenet_edgetpu_v2_xs mobilenetv5_base",
    "mobileone, repvgg": "mobileone_s0 repvgg_a0 repghostnet_050 repvit_m0_9",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "convnext": "convnext_atto convnext_femto_ols convnextv2_atto convnext_atto_ols convnext_zepto_rms test_convnext "
    "test_convnext2 test_convnext3",
    "nfnet": "nf_resnet26 dm_nfnet_f0 nfnet_l0 eca_nfnet_l0 nf_regnet_b0 nf_ecaresnet26 test_nfnet",
    "mixnet": "mixnet_s tf_mixnet_s",
    # vgg11 is not a family's first: its weights and their gradients, twice on each of four ranks, are 16 GB.
    "inception, vgg": "inception_v3 inception_v4 inception_resnet_v2 inception_next_atto vgg11 vgg11_bn",
    "xception": "xception41 legacy_xception xception41p",
    "dla, dpn": "dla34 dla46_c dla60_res2net dpn48b",
    "hrnet": "hrnet_w18_small",
    "csp, darknet": "cspresnet50 darknet17 cs3darknet_s darknetaa53 cspdarknet53 cs3edgenet_x cs3sedarknet_l",
    "vovnet, selecsls": "ese_vovnet19b_slim selecsls42 vovnet39a ese_vovnet19b_slim_dw",
    "fasternet, starnet": "fasternet_t0 starnet_s1",
    "rexnet, hgnet": "rexnet_100 rexnetr_200 hgnet_tiny hgnetv2_b0",
    "byobnet": "bat_resnext26ts halonet26t lambda_resnet26t botnet26t_256 haloregnetz_b gernet_s "
    "lamhalobotnet50ts_256 sehalonet33ts regnetz_b16 test_byobnet",
    "edgenext, mobilevit": "edgenext_xx_small mobilevit_xxs mobilevitv2_050 fastvit_t8 fastvit_mci0",
    "metaformer": "poolformer_s12 convformer_s18 caformer_s18 poolformerv2_s12",
    "coatnet, maxvit": "coatnet_pico_rw_224 maxvit_pico_rw_256 coatnet_0_rw_224 maxxvit_rmlp_nano_rw_256 test_vit",
    "transformer": "vit_tiny_patch16_224 swin_tiny_patch4_window7_224 pvt_v2_b0 davit_tiny twins_pcpvt_small "
    "xcit_nano_12_p16_224 mvitv2_tiny focalnet_tiny_srf nextvit_small efficientformer_l1 efficientformerv2_s0 "
    "levit_128s tiny_vit_5m_224 gcvit_xxtiny efficientvit_b0 efficientvit_m0 hiera_tiny_224 crossvit_tiny_240 "
    "swiftformer_xs shvit_s1 rdnet_tiny mambaout_femto vitamin_small_224 hieradet_small tresnet_m convmixer_768_32 "
    "visformer_tiny volo_d1_224 sequencer2d_s csatv2 repghostnet_080 mixer_s32_224 gmlp_s16_224",
}
TIMM_SIZES = {
    (64, 48): "lambda_resnet26t tresnet_m",
    (96, 64): "resnetaa50 dla34 dla46_c dla60_res2net hrnet_w18_small hieradet_small csatv2",
    (99, 91): "inception_v3 inception_v4 inception_resnet_v2",
    (160, 160): "test_vit",
    (224, 224): "haloregnetz_b coatnet_pico_rw_224 coatnet_0_rw_224 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 "
    "efficientformer_l1 efficientformerv2_s0 levit_128s gcvit_xxtiny hiera_tiny_224 vitamin_small_224 visformer_tiny "
    "volo_d1_224 mixer_s32_224 gmlp_s16_224",
    (256, 256): "bat_resnext26ts halonet26t botnet26t_256 lamhalobotnet50ts_256 sehalonet33ts maxvit_pico_rw_256 "
    "maxxvit_rmlp_nano_rw_256",
}
"""Of those that do not take every size, or need more pixels than 67 × 53."""


def timm_model(name: str) -> nn.Module:
    let_torchvision_import()  # timm does
    import timm

    return timm.create_model(name, pretrained=False, num_classes=4)


SMP = {
    **{name: {} for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3")},
    **{name: {} for name in ("DeepLabV3Plus", "UPerNet", "Segformer")},
    "DPT": {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True},
    "Unet, scse": {"decoder_attention_type": "scse"},
    "Unet, aux": {"aux_params": {"classes": 4, "pooling": "max"}},
}
SMP_SIZES = {"PAN": (128, 128)}
ENCODERS = (
    "mobilenet_v2 efficientnet-b0 timm-regnetx_002 se_resnet50 densenet121 vgg11_bn mit_b0 mobileone_s0 xception "
    "inceptionv4 timm-resnest14d timm-skresnet18 timm-gernet_s timm-res2net50_14w_8s dpn68 tu-convnext_atto "
    "tu-mobilenetv4_conv_small_050 tu-ghostnet_100 tu-hrnet_w18_small tu-edgenext_xx_small resnext50_32x4d"
)


def smp_model(name: str, **keywords) -> nn.Module:
    let_torchvision_import()
    import segmentation_models_pytorch as smp

    options = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3, **keywords}
    return smp.create_model(name.partition(",")[0], **options)


TORCHVISION = (
    "squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small mnasnet0_5 googlenet regnet_y_400mf resnet18 "
    "efficientnet_b0 densenet121 convnext_tiny inception_v3 efficientnet_v2_s swin_t maxvit_t vit_b_16 alexnet "
    "resnext50_32x4d"
)
TORCHVISION_SIZES = {"inception_v3": (99, 91), "maxvit_t": (224, 224), "vit_b_16": (224, 224)}
TORCHVISION_OPTIONS = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception_v3": {"init_weights": False, "aux_logits": False},
}
TORCHVISION_SEGMENTATION = "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large fcn_resnet50"


def torchvision_model(name: str, **keywords) -> nn.Module:
    let_torchvision_import()
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=4, **keywords)


# What each is called with, and the image's size where it is not 80 × 64.
MONAI = {
    "UNet": ((2, 3, 4, (8, 16, 32), (2, 2)), {"num_res_units": 2}),
    "UNet, batch norm": ((2, 3, 4, (8, 16, 32), (2, 2)), {"norm": "batch"}),
    "BasicUNet": ((2, 3, 4, (8, 8, 16, 16, 32, 8)), {}),
    "BasicUNetPlusPlus": ((2, 3, 4, (8, 8, 16, 16, 32, 8)), {}),
    "AttentionUnet": ((2, 3, 4, (8, 16, 32), (2, 2)), {}),
    "DynUNet": ((2, 3, 4, (3, 3, 3), (1, 2, 2), (2, 2)), {"filters": (8, 16, 32)}),
    "SegResNet": ((2, 8, 3, 4), {}),
    "SegResNetDS": ((2, 8, 3, 4), {}),
    "FlexibleUNet": ((3, 4, "efficientnet-b0"), {"pretrained": False}),
    "resnet18": ((), {"spatial_dims": 2, "n_input_channels": 3, "num_classes": 4}),
    "DenseNet": ((2, 3, 4), {"block_config": (2, 2, 2)}),
    "SEResNet50": ((), {"spatial_dims": 2, "in_channels": 3, "num_classes": 4}),
    "EfficientNetBN": (("efficientnet-b0", False), {"spatial_dims": 2, "in_channels": 3, "num_classes": 4}),
    "HighResNet": ((2, 3, 4), {}),
    "AutoEncoder": ((2, 3, 4, (8, 16, 32), (2, 2, 2)), {}),
    "VNet": ((2, 1, 4), {"dropout_dim": 2}),
    "Quicknat": ((), {"num_classes": 4, "num_channels": 3, "num_filters": 16}),
    "HoVerNet": (("fast", 3, 2, 4), {}),
    "MedNeXt": (
        (2, 8, 3, 4),
        {f"{part}_expansion_ratio": 2 for part in ("encoder", "decoder", "bottleneck")},
    ),
    "FCN": ((4,), {"pretrained": False}),
    "MCFCN": ((3, 4), {"pretrained": False}),
    "SwinUNETR": ((3, 4), {"feature_size": 12, "spatial_dims": 2}),
    "UNETR": ((3, 4, (96, 96)), {"spatial_dims": 2, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}),
    "RegUNet": ((2, 3, 8, 2), {"out_channels": 4, "extract_levels": (0, 1, 2)}),
    "ViT": (
        (3, (96, 96), (16, 16)),
        {"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 3, "spatial_dims": 2, "classification": True},
    ),
    "MultiScalePatchDiscriminator": ((2, 2, 2, 8, 3), {}),
    "PatchDiscriminator": ((2, 8, 3), {}),
    "AutoencoderKL": (
        (2, 3, 3),
        {
            "channels": (8, 8), "attention_levels": (False, False), "num_res_blocks": (1, 1), "norm_num_groups": 4,
            "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
        },
    ),
}  # fmt: skip
MONAI_SIZES = {
    "SwinUNETR": (128, 128), "UNETR": (96, 96), "ViT": (96, 96), "HoVerNet": (256, 256), "FCN": (128, 128),
    "MCFCN": (128, 128),
}  # fmt: skip
MONAI_CHANNELS = {"VNet": 1}


def monai_model(name: str) -> nn.Module:
    arguments, keywords = MONAI[name]
    kind = name.partition(",")[0]
    of_torchvision = kind in ("FCN", "MCFCN")
    if of_torchvision:
        let_torchvision_import()  # before MONAI does

    from monai.networks import blocks, nets

    return getattr(blocks if of_torchvision else nets, kind)(*arguments, **keywords)


def entries() -> dict[tuple[str, str], Entry]:
    """All of them, by library and name."""
    make = functools.partial
    timm_sizes = {name: size for size, names in TIMM_SIZES.items() for name in names.split()}
    found = [
        Entry("timm", f"timm: {family}", name, make(timm_model, name), timm_sizes.get(name, SIZE))
        for family, names in TIMM.items()
        for name in names.split()
    ]
    found += [
        Entry("smp", "smp", name, make(smp_model, name, **options), SMP_SIZES.get(name, (96, 64)))
        for name, options in SMP.items()
    ]
    found += [
        Entry("smp", "smp: encoders", f"Unet/{name}", make(smp_model, "Unet", encoder_name=name), (64, 64))
        for name in ENCODERS.split()
    ]
    for name in TORCHVISION.split():
        model = make(torchvision_model, name, **TORCHVISION_OPTIONS.get(name, {}))
        found.append(Entry("torchvision", "torchvision", name, model, TORCHVISION_SIZES.get(name, (97, 75))))
    found += [
        Entry("torchvision", "torchvision: segmentation", name, make(torchvision_model, name, weights_backbone=None))
        for name in TORCHVISION_SEGMENTATION.split()
    ]
    found += [
        Entry(
            "monai",
            "MONAI",
            name,
            make(monai_model, name),
            MONAI_SIZES.get(name, (80, 64)),
            MONAI_CHANNELS.get(name, 3),
        )
        for name in MONAI
    ]
    return {(entry.library, entry.name): entry for entry in found}
