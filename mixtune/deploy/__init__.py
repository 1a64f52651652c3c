"""Using a trained network: picked by need, written in several formats, served. Never Ray or Optuna."""
