"""What a study will take, measured and forecast before it starts."""
