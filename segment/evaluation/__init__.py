"""Lesion-wise evaluation and its report; imports without TensorFlow and works on the masks of any tool."""
