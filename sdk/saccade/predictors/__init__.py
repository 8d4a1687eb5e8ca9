"""One predictor per task."""
