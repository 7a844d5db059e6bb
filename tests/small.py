"""The experiment that tests run for real, and the settings that make it a matter of a second."""

DIGITS = "classification/digits_cnn"
SMALL = ("train.epochs=1", "learn.steps=10", "learn.items=16")


def merged(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of several groups; where a key occurs twice, the last value counts."""
    values = {setting.partition("=")[0]: setting for group in groups for setting in group}
    return tuple(values.values())
