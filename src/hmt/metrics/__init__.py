"""Metrics, intervals, and costs."""
