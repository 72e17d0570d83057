"""Optimizers that torch and timm lack, and schedules."""
