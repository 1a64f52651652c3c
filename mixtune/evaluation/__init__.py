"""What a trained network is worth: metrics, the curve over sizes, score, latency, corruptions."""
