"""A U-Net trainer for medical scans that finds small lesions. Importing it does not import TensorFlow."""

__version__ = "0.1.0"
