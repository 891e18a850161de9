"""MoEscope: an oscilloscope for Mixture-of-Experts routers."""

__version__ = "0.1.0"
