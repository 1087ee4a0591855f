"""This project's function."""

from convt3d import conv_transpose3d

__all__ = ["conv_transpose3d"]
