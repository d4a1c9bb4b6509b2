"""Python tools of Isotherm: train, synthesize and export ReLU-sparse GGUF models."""
