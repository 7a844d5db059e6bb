"""SimpleBaseline on Leeds Sports Pose with a pretrained EfficientNet-Lite0; the rest as in lsp_resnet18_128x96.py."""

_base_ = ["lsp_resnet18_128x96.py"]

model = dict(
    data_preprocessor=dict(mean=[127, 127, 127], std=[128, 128, 128]),  # as the backbone was pretrained
    backbone=dict(_delete_=True, type="EfficientNetLite0", init_cfg=dict(type="Pretrained")),
    head=dict(in_channels=320),
)
custom_imports = dict(
    imports=["reloss_tasks.pose.scoring", "reloss_tasks.pose.losses", "reloss_tasks.pose.efficientnet"],
    allow_failed_imports=False,
)
