"""Optimizers, schedules and settings for a training loop of one's own."""
