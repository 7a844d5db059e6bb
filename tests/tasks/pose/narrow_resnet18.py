"""The config of `pose/lsp_resnet18` with an eighth of its channels, so that tests train it in a second."""

_base_ = ["../../../tasks/pose/configs/lsp_resnet18_128x96.py"]

model = {
    "backbone": {"base_channels": 8, "stem_channels": 8, "init_cfg": None},
    "head": {"in_channels": 64, "deconv_out_channels": (8, 8)},
}
