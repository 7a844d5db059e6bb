"""The experiment that tests run for real, and the settings that make it a matter of a second."""

DIGITS = "classification/digits_cnn"
SMALL = ("train.epochs=1", "learn.steps=10", "learn.items=16")
