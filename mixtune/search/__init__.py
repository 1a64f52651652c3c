"""What is searched, and Optuna, which proposes and prunes: the only package that imports optuna."""
