"""SimpleBaseline on Leeds Sports Pose: mmpose's config for COCO, reduced to ResNet-18, 128x96 and 14 joints.

At the end of a ResNet, an image of 128x96 has only 4x3 positions. So the last stage keeps its resolution here, and the
head has one deconvolution less, with 64 channels.
"""

_base_ = ["mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py"]

names = [
    *["right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"],
    *["right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"],
    *["neck", "head_top"],
]
mirror = {"right": "left", "left": "right"}
limbs = [(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11), (2, 3), (8, 9), (12, 13)]
metainfo = dict(
    dataset_name="lsp",
    paper_info=dict(author="S. Johnson and M. Everingham", title="LSP extended", year="2011"),
    keypoint_info={
        number: dict(
            name=name,
            id=number,
            color=[255, 128, 0] if name.startswith("right") else [0, 255, 0],
            type="lower" if number < 6 else "upper",
            swap=f"{mirror[name.split('_')[0]]}_{name.split('_')[1]}" if name.split("_")[0] in mirror else "",
        )
        for number, name in enumerate(names)
    },
    skeleton_info={
        number: dict(link=(names[first], names[second]), id=number, color=[0, 128, 255])
        for number, (first, second) in enumerate(limbs)
    },
    joint_weights=[1.0] * 14,
    sigmas=[0.05] * 14,  # for OKS, which is not used: the spread of LSP's annotations is unknown
)

codec = dict(type="MSRAHeatmap", input_size=(96, 128), heatmap_size=(24, 32), sigma=2)

model = dict(
    backbone=dict(
        depth=18, strides=(1, 2, 2, 1), init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")
    ),
    head=dict(
        in_channels=512, out_channels=14, deconv_out_channels=(64, 64), deconv_kernel_sizes=(4, 4), decoder=codec
    ),
)

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="GetBBoxCenterScale"),
    dict(type="RandomFlip", direction="horizontal"),
    dict(type="RandomBBoxTransform", scale_factor=(0.8, 1.25), rotate_factor=30),
    dict(type="TopdownAffine", input_size=codec["input_size"]),
    dict(type="GenerateTarget", encoder=codec),
    dict(type="PackPoseInputs"),
]
val_pipeline = [
    dict(type="LoadImage"),
    dict(type="GetBBoxCenterScale"),
    dict(type="TopdownAffine", input_size=codec["input_size"]),
    dict(type="PackPoseInputs"),
]

param_scheduler = [  # COCO's warm-up of 500 steps would be a large part of so short a training
    dict(type="LinearLR", begin=0, end=50, start_factor=0.001, by_epoch=False),
    dict(type="MultiStepLR", begin=0, end=210, milestones=[170, 200], gamma=0.1, by_epoch=True),
]

data_root = "data/lsp/"
dataset = dict(type="CocoDataset", metainfo=metainfo, data_root=data_root, data_prefix=dict(img="images/"))
train_dataloader = dict(dataset=dict(**dataset, ann_file="annotations/lsp_train.json", pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_mode="topdown",
        ann_file="annotations/lsp_val.json",
        bbox_file=None,
        test_mode=True,
        pipeline=val_pipeline,
    )
)
test_dataloader = val_dataloader

# The distance between right shoulder (8) and left hip (3) is the unit of PCK.
val_evaluator = dict(_delete_=True, type="TorsoPCK", threshold=0.2, torso=(8, 3))
test_evaluator = val_evaluator

default_hooks = dict(checkpoint=dict(save_best=None))
custom_imports = dict(imports=["reloss_tasks.pose.scoring", "reloss_tasks.pose.losses"], allow_failed_imports=False)
